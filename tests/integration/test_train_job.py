"""A whole training job on a real Ray cluster and a real S3 server."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from parrot_dist import configuration, evaluate, storage, train
from parrot_dist.local.cluster import RayHead, client_environment
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint
from tests.corpus import write_corpus
from tests.faults import fault_proxy
from tests.jobs import Driver, Material, fingerprint, settings, train_here
from tests.keys import contents_of, holding, secret_of
from tests.processes import cut_power, listening, running

pytestmark = pytest.mark.cluster
LOOPBACK = ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")  # of /proc/net
METADATA = """if True:
    # Writes every value of the key-value store, where pickled functions, jobs and packages are, to a file of the folder
    # argv[1], and Ray's tables of what it has run to one file each.
    import pathlib, sys
    import ray
    from ray._private import ray_constants
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list
    from ray.util import state
    ray.init(log_to_driver=False)
    folder = pathlib.Path(sys.argv[1])
    for name, space in vars(ray_constants).items():
        if name.startswith("KV_NAMESPACE_"):
            for number, key in enumerate(_internal_kv_list(b"", namespace=space)):
                value = _internal_kv_get(key, namespace=space) or b""
                (folder / f"{name}-{number}").write_bytes(value)
    for what in ("actors", "tasks", "jobs", "nodes", "workers", "runtime_envs", "placement_groups", "objects"):
        table = getattr(state, f"list_{what}")(detail=True, limit=10000)
        (folder / f"table-{what}").write_text(repr(table))
"""


def ray_knows(head: RayHead, folder: Path) -> dict[str, bytes]:
    """Everything that Ray has written down: place -> content."""
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"])
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token.read_text()}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = {"dashboard": answer.read()}
    command = [sys.executable, "-c", METADATA, str(folder)]
    subprocess.run(command, env=client_environment(head.env), check=True)
    scratch = re.search(r"/tmp/ray-\w+", (token.parent / "ray.log").read_text())
    for place in (folder, Path(scratch[0])):
        found |= contents_of(place)
    return found | {"ray.log": (token.parent / "ray.log").read_bytes()}


def unzipped(contents: dict[str, bytes]) -> dict[str, bytes]:
    """`contents`, and what is in those of them that are archives, as Ray's packages are."""
    found = dict(contents)
    for place, data in contents.items():
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found |= {f"{place}: {name}": archive.read(name) for name in archive.namelist()}
    return found


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


def test_no_secret_is_in_what_ray_knows_or_in_the_store(
    finished_run, ray_cluster: RayHead, s3: S3Server, tmp_path: Path
) -> None:
    output = finished_run.url.removesuffix("/run")
    objects = {f"object {name}": storage.read_bytes(f"{output}/{name}") for name in storage.list_files(output)}
    contents = unzipped(ray_knows(ray_cluster, tmp_path) | objects | {"output": finished_run.output.encode()})

    # What is known to be there is found in every kind of place: a search that finds nothing would prove nothing.
    for word, kinds in {
        output: "dashboard, job-driver, KV_NAMESPACE_JOB, table-jobs, object run/config.yaml, output",
        "parrot_dist.training.monitor": "KV_NAMESPACE_FUNCTION_TABLE",
        "TrainController": "ray-train-sys-controller",
        "RayTrainWorker": "table-actors, table-tasks",
        "def exits_cleanly": "parrot_dist/errors.py",
        "train/loss": "object run/tensorboard",
        "sizes": "object cache",
    }.items():
        places = "\n".join(holding(word, contents))
        assert [kind for kind in kinds.split(", ") if kind not in places] == []
    token = Path(ray_cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert [holding(secret, contents) for secret in (secret_of(s3), token)] == [[], []]


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
def test_without_a_cluster_it_starts_one_of_its_own_on_loopback_and_when_its_head_is_lost_goes_on_in_another(
    material: Material, bucket_url: str, ray_cluster: RayHead, s3: S3Server, finished_run
) -> None:
    words = settings(material, bucket_url, "checkpoint.every_steps=1")
    with fault_proxy(s3.endpoint) as proxy, Driver(words, proxy.environment()) as driver:
        proxy.strike(r"PUT \S*/step-00000008/manifest\.json", "hold")  # so that the run is not over before the loss
        driver.wait_for("epoch 1/3  loss")
        heard = listening(driver.process.pid)
        assert any("TrainWorker" in command for command in heard.values())
        assert {place: command for place, command in heard.items() if not place.startswith(LOOPBACK)} == {}
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
