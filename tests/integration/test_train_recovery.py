"""A job that is stopped, or loses its driver or a worker, goes on as if nothing had happened (contract 5)."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from parrot_dist import storage
from parrot_dist.local.cluster import RayHead
from tests.corpus import write_corpus
from tests.jobs import Driver, Material, fingerprint, settings, train

pytestmark = pytest.mark.cluster


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(
    material: Material, bucket_url: str, ray_cluster: RayHead, finished_run
) -> None:
    words, run = settings(material, bucket_url), f"{bucket_url}/run"
    reached = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with Driver(words, ray_cluster.env) as driver:
            driver.wait_for("/6  loss")
            driver.process.send_signal(number)
            assert driver.finish() == 128 + number, driver.output
        assert "a checkpoint is being saved" in driver.output
        step, digest = fingerprint(run)
        assert f"stopped; the same command goes on from {run}/checkpoints/step-{step:08d}" in driver.output
        assert reached < step < 18
        assert (step, digest) == fingerprint(finished_run.url, step)
        reached = step
    code, output = train(words, ray_cluster.env)
    assert code == 0, output
    assert f"going on from step {reached}" in output
    assert fingerprint(run) == fingerprint(finished_run.url)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_loses_its_driver_and_then_a_worker_ends_with_the_same_parameters(
    material: Material, bucket_url: str, ray_cluster: RayHead, finished_run
) -> None:
    words = settings(material, bucket_url, "checkpoint.every_steps=1")
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("epoch 1/3  loss")
        driver.process.kill()
    reached, _ = fingerprint(f"{bucket_url}/run")
    assert 5 <= reached < 18
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("/6  loss")
        os.kill(train_workers(ray_cluster)[-1], signal.SIGKILL)
        assert driver.finish() == 0, driver.output
    starts = [line for line in driver.output.splitlines() if "on 2 workers" in line]
    assert len(starts) == 2
    assert all("going on from step" in line for line in starts)
    assert fingerprint(f"{bucket_url}/run") == fingerprint(finished_run.url)


def train_workers(head: RayHead) -> list[int]:
    """The processes that train on `head`: its raylet's children of that name."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            processes[int(folder.name)] = (folder / "cmdline").read_text(), parent
        except OSError:
            continue  # it has just ended
    raylets = [pid for pid, (command, _) in processes.items() if "/raylet" in command and head.address in command]
    found = [pid for pid, (command, parent) in processes.items() if "TrainWorker" in command and parent in raylets]
    assert len(found) == 2
    return sorted(found)


def test_a_job_that_still_waits_for_its_workers_ends_at_once_when_told_to(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    words = settings(material, bucket_url, "fusion.name=cnn", "scale.cpus_per_worker=3")
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("waiting until the cluster has 6 CPUs for 2 workers; it has 4")
        driver.process.send_signal(signal.SIGTERM)
        assert driver.finish() == 128 + signal.SIGTERM, driver.output
    assert "nothing was saved yet" in driver.output


def test_a_store_that_goes_away_ends_the_run_though_only_one_worker_writes(
    material: Material, ray_cluster: RayHead
) -> None:
    fs, _ = storage.filesystem("s3://vanishing")
    fs.mkdir("vanishing")
    words = settings(material, "s3://vanishing", "fusion.name=cnn", "optim.epochs=1000")
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("/6  loss")
        while fs.exists("vanishing"):
            with suppress(OSError):  # something was written while it was emptied
                fs.rm("vanishing", recursive=True)
        assert driver.finish() == 2, driver.output
    assert "error: s3://vanishing/run/checkpoints/" in driver.output
    assert "there is no such bucket" in driver.output


def test_too_many_broken_samples_end_the_run_at_once_and_are_named(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    corpus = write_corpus(f"{bucket_url}/corpus", speakers=8, clips=9)
    for name in storage.list_files(corpus):
        if name.endswith(".tar"):
            data = storage.read_bytes(f"{corpus}/{name}")
            storage.write_bytes(f"{corpus}/{name}", data.replace(b"fLaC", b"none"))
    code, output = train(settings(material, bucket_url, f"data.shards={corpus}", "fusion.name=cnn"), ray_cluster.env)
    assert code == 2, output
    assert output.count("starting on 2 workers") == 1
    assert f"error: data.max_broken: 8 of 45 utterances of {corpus} cannot be read, more than 1.0%: s0" in output
    assert "skipped s0" in output
    assert "Traceback" not in output
