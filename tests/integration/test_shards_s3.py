"""Shards on a real S3 server: built from a bucket into a bucket, checked, lost and restored."""

import pytest

from parrot_dist import storage
from parrot_dist.data import index
from parrot_dist.errors import UserError
from shards import build, speak
from shards import index as shards_index


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

    storage.delete(f"{out}/index.parquet")
    assert not build.is_built(out, found.digest)
    rebuilt, _ = shards_index.rebuild(out)
    assert rebuilt.digest == made.digest

    storage.delete(f"{out}/shard-000001.tar")
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        index.check_index(out, made)


def test_a_bucket_that_does_not_exist_is_said(s3):
    with pytest.raises(UserError, match="s3://no-such-bucket/corpus"):
        index.read_index("s3://no-such-bucket/corpus")
