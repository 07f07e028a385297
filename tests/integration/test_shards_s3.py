"""Shards on a real S3 server, from a bucket into a bucket, by threads and by a cluster: checked, lost, restored."""

import subprocess
import sys

import pytest

from parrot_dist import storage
from parrot_dist.data import index
from parrot_dist.errors import UserError
from parrot_dist.local.cluster import client_environment
from shards import build, check, speak
from shards import index as shards_index
from tests.layouts import make_mesd


def test_a_spoken_corpus_goes_to_s3_and_its_index_comes_back(bucket_url, tmp_path):
    speak.speak(tmp_path, seed=0, speakers=1, texts=2)
    for name in storage.list_files(str(tmp_path)):
        storage.write_bytes(f"{bucket_url}/corpus/{name}", (tmp_path / name).read_bytes())
    out = f"{bucket_url}/shards"
    settings = build.parse(["corpus=spoken", f"source={bucket_url}/corpus", f"out={out}", "shard_mb=0.2"])
    found = build.survey(settings)
    with pytest.raises(UserError, match=r"no index\.parquet there"):
        index.read_index(out)
    made, skipped = build.build(settings, found)
    assert (len(made), skipped) == (12, {})
    assert len(made.shard_sizes) > 1
    assert build.is_built(out, found.digest)
    index.check_index(out, index.read_index(out))
    assert list(check.check(out)) == []

    storage.delete(f"{out}/index.parquet")
    assert not build.is_built(out, found.digest)
    rebuilt, _ = shards_index.rebuild(out)
    assert rebuilt.digest == made.digest

    storage.delete(f"{out}/shard-000001.tar")
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        index.check_index(out, made)
    assert "shard-000001.tar: is in the index, but there is no such file" in map(str, check.check(out))


def test_an_object_that_was_rewritten_at_the_same_size_is_built_again(bucket_url, tmp_path):
    make_mesd(tmp_path)
    for name in storage.list_files(str(tmp_path)):
        storage.write_bytes(f"{bucket_url}/corpus/{name}", (tmp_path / name).read_bytes())
    settings = build.parse(["corpus=mesd", f"source={bucket_url}/corpus", f"out={bucket_url}/shards"])
    before = build.survey(settings)
    assert build.survey(settings).digest == before.digest
    storage.write_bytes(f"{bucket_url}/corpus/{name}", (tmp_path / name).read_bytes()[:-2] + b"!!")
    after = build.survey(settings)
    assert after.sizes == before.sizes
    assert after.digest != before.digest


def test_a_cluster_that_does_not_answer_is_said(tmp_path, monkeypatch):
    make_mesd(tmp_path / "corpus")
    settings = build.parse(["corpus=mesd", f"source={tmp_path / 'corpus'}", f"out={tmp_path / 'out'}"])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:1"):
        build.build(settings, build.survey(settings))


@pytest.mark.cluster
def test_a_cluster_makes_the_same_bytes_and_goes_on_where_a_build_was_cut_off(
    bucket_url, tmp_path, ray_cluster, monkeypatch
):
    source, local = f"{bucket_url}/corpus", tmp_path / "local"
    make_mesd(tmp_path / "corpus", takes=4)
    for name in storage.list_files(str(tmp_path / "corpus")):
        storage.write_bytes(f"{source}/{name}", (tmp_path / "corpus" / name).read_bytes())
    settings = build.parse(["corpus=mesd", f"source={source}", f"out={local}", "shard_mb=0.03"])
    made, _ = build.build(settings, build.survey(settings))
    assert len(made.shard_sizes) > 4

    words = [f"out={bucket_url}/shards", "corpus=mesd", f"source={source}", "shard_mb=0.03"]
    cut_off = build.parse(words)
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_index", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build.build(cut_off, build.survey(cut_off))
    storage.delete(f"{bucket_url}/shards/building/shard-000001.tar.json")
    storage.delete(f"{bucket_url}/shards/shard-000003.tar")
    command = [sys.executable, "-m", "shards.build", *words]
    done = subprocess.run(command, env=client_environment(ray_cluster.env), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert f"72 clips, 0.00 hours, 3 speakers, {len(made.shard_sizes)} shards" in done.stdout
    files = storage.list_files(f"{bucket_url}/shards")
    assert set(files) == {path.name for path in local.iterdir()}
    assert all(storage.read_bytes(f"{bucket_url}/shards/{name}") == (local / name).read_bytes() for name in files)


def test_a_bucket_that_does_not_exist_is_said(s3):
    with pytest.raises(UserError, match="s3://no-such-bucket/corpus"):
        index.read_index("s3://no-such-bucket/corpus")
