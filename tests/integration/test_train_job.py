"""A whole training job on a real Ray cluster and a real S3 server."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from parrot_dist import configuration, evaluate, storage, train
from parrot_dist.local.cluster import RayHead, client_environment
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint
from tests.corpus import write_corpus
from tests.jobs import Driver, Material, fingerprint, settings, train_here
from tests.processes import cut_power, running

pytestmark = pytest.mark.cluster
METADATA = """if True:
    # The keys of Ray's key-value store, where pickled functions, jobs and packages are, whose values hold argv[1].
    import json, sys
    import ray
    from ray._private import ray_constants
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list
    ray.init(log_to_driver=False)
    spaces = [space for name, space in vars(ray_constants).items() if name.startswith("KV_NAMESPACE_")]
    keys = [(key, space) for space in spaces for key in _internal_kv_list(b"", namespace=space)]
    assert any(space == b"fun" for _, space in keys)
    found = [key for key, space in keys if sys.argv[1].encode() in (_internal_kv_get(key, namespace=space) or b"")]
    print(json.dumps([repr(key) for key in found]))
"""


def secret_of(s3: S3Server) -> str:
    content = configparser.ConfigParser()
    content.read(s3.env["AWS_SHARED_CREDENTIALS_FILE"])
    return content["default"]["aws_secret_access_key"]


def test_it_ends_with_code_0_and_says_how_it_went_and_where_the_checkpoints_are(finished_run) -> None:
    assert finished_run.code == 0, finished_run.output
    assert "starting on 2 workers" in finished_run.output
    for epoch in (1, 2, 3):
        assert re.search(
            rf"epoch {epoch}/3  loss .* accuracy .* UAR .* macro-F1 .* utt/s  data wait", finished_run.output
        )
    newest, best = checkpoint.newest(finished_run.url), checkpoint.best(finished_run.url)
    assert newest.manifest.step == 18
    places = f"newest checkpoint: {newest.url}\nbest checkpoint:   {best.url}"
    _, found, after = finished_run.output.partition(places)
    assert found
    of_submission = re.compile(r"-*|.*\b[Jj]ob '?parrot-\w+.*")
    assert [line for line in after.splitlines() if not of_submission.fullmatch(line)] == []


def test_the_resolved_configuration_lies_beside_the_checkpoints_and_in_each(finished_run) -> None:
    text = storage.read_bytes(f"{finished_run.url}/config.yaml")
    assert configuration.loads(text.decode()) == configuration.load(None, finished_run.words)
    assert checkpoint.read_part(checkpoint.newest(finished_run.url), "config.yaml") == text
    assert not storage.exists(f"{finished_run.url}/ray")  # what Ray keeps there is of no use any more


def test_no_secret_is_in_rays_metadata_its_files_or_the_store(finished_run, ray_cluster: RayHead, s3: S3Server) -> None:
    secret, found = secret_of(s3).encode(), []
    token = Path(ray_cluster.env["RAY_AUTH_TOKEN_PATH"])
    request = urllib.request.Request(
        f"{ray_cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token.read_text()}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found += [request.full_url] if secret in answer.read() else []
    scratch = re.search(r"/tmp/ray-\w+", (token.parent / "ray.log").read_text())
    files = [path for path in Path(scratch[0]).rglob("*") if path.is_file()]
    assert any("ray-train" in path.name for path in files)
    found += [path for path in files if secret in path.read_bytes()]
    client = [sys.executable, "-c", METADATA, secret.decode()]
    found += json.loads(subprocess.check_output(client, env=client_environment(ray_cluster.env)).splitlines()[-1])
    objects = storage.list_files(finished_run.url)
    assert len(objects) > 18
    found += [name for name in objects if secret in storage.read_bytes(f"{finished_run.url}/{name}")]
    assert found == []


def test_the_same_command_again_says_that_all_is_done_and_changes_nothing(
    finished_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(finished_run.url)
    monkeypatch.setattr("sys.argv", ["train", *finished_run.words])
    monkeypatch.setattr(train, "cluster", lambda scale: pytest.fail("a cluster was started"))
    assert train.main() == 0
    said = capsys.readouterr().out
    assert f"{finished_run.url} is complete after 3 epochs; nothing to do" in said
    assert f"newest checkpoint: {finished_run.url}/checkpoints/step-00000018" in said
    assert state_of(finished_run.url) == before


def state_of(url: str) -> dict[str, str]:
    """Name -> time of its last writing, of all objects below `url`."""
    fs, path = storage.filesystem(url)
    return {name: str(info["LastModified"]) for name, info in fs.find(path, detail=True).items()}


def test_a_name_that_was_used_with_other_settings_is_refused(
    finished_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *finished_run.words, "optim.lr=0.5", "fusion.dropout=0"])
    monkeypatch.setattr(train, "cluster", lambda scale: pytest.fail("a cluster was started"))
    assert train.main() == 2
    message = capsys.readouterr().err
    assert f"name: {finished_run.url} is a run with other settings" in message
    assert "optim.lr: 0.001 -> 0.5" in message
    assert "fusion.dropout: 0.3 -> 0" in message


def test_a_corpus_that_has_changed_is_refused(
    material: Material, bucket_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(f"{bucket_url}/corpus", speakers=8, clips=9)
    words = settings(material, bucket_url, f"data.shards={corpus}", "fusion.name=cnn", "optim.epochs=1")
    run = train_here(words)
    write_corpus(corpus, speakers=8, clips=10)
    monkeypatch.setattr("sys.argv", ["train", *words, "optim.epochs=2"])
    monkeypatch.setattr(train, "cluster", lambda scale: pytest.fail("a cluster was started"))
    assert train.main() == 2
    changed = f"error: data.shards: {corpus} has changed since {run}/checkpoints/step-00000006 was trained on it"
    assert changed in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["evaluate", run])
    assert evaluate.main() == 2
    assert changed in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_a_cluster_it_starts_one_of_its_own_and_when_its_head_is_lost_goes_on_in_another(
    material: Material, bucket_url: str, ray_cluster: RayHead, finished_run
) -> None:
    words = settings(material, bucket_url, "checkpoint.every_steps=1")
    with Driver(words, client_environment({})) as driver:
        driver.wait_for("epoch 1/3  loss")
        for child, (_, parent) in running().items():
            if parent == driver.process.pid:
                cut_power(child)
        assert driver.finish() == 1, driver.output
    assert "the run was lost: " in driver.output
    assert "Traceback" not in driver.output
    with Driver(words, ray_cluster.env) as driver:
        assert driver.finish() == 0, driver.output
    assert re.search(r"going on from step [1-9]\d* .* on 2 workers", driver.output)
    assert fingerprint(f"{bucket_url}/run") == fingerprint(finished_run.url)
