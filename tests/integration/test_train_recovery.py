"""A job that is stopped, or loses its driver or a worker, goes on as if nothing had happened (contract 5)."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import suppress

import pytest

from parrot_dist import storage
from parrot_dist.local.cluster import RayHead
from parrot_dist.local.s3 import S3Server
from tests.corpus import write_corpus
from tests.gate import Gate
from tests.jobs import Driver, Material, fingerprint, settings, train
from tests.processes import train_workers

pytestmark = pytest.mark.cluster
AWAY_SECONDS = 3.0  # of the store: the loop alone rides out 20 s by the same repetitions, only later ones


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_was_stopped_and_then_loses_a_worker_ends_with_the_same_parameters(
    material: Material, bucket_url: str, ray_cluster: RayHead, finished_run
) -> None:
    words, run = settings(material, bucket_url, "checkpoint.every_steps=4"), f"{bucket_url}/run"
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("/6  loss")
        driver.process.send_signal(signal.SIGTERM)
        assert driver.finish() == 128 + signal.SIGTERM, driver.output
    step, digest = fingerprint(run)
    assert f"stopped; the same command goes on from {run}/checkpoints/step-{step:08d}" in driver.output
    assert 0 < step < 18
    assert (step, digest) == fingerprint(finished_run.url, step)
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("/6  loss")
        os.kill(train_workers(ray_cluster.address)[0], signal.SIGKILL)
        assert driver.finish() == 0, driver.output
    starts = re.findall(r"going on from step (\d+) .* on 2 workers", driver.output)
    assert len(starts) == 2
    assert step == int(starts[0]) <= int(starts[1])
    assert fingerprint(run) == fingerprint(finished_run.url)


def test_a_run_that_lost_its_driver_amid_a_checkpoint_and_its_store_for_a_while_stands_where_the_undisturbed_one_stood(
    material: Material, bucket_url: str, ray_cluster: RayHead, s3: S3Server, finished_run
) -> None:
    words, run = settings(material, bucket_url, "checkpoint.every_steps=1"), f"{bucket_url}/run"
    torn = f"{run}/checkpoints/step-00000007"
    with Gate(s3.endpoint) as gate:
        with Driver(words, ray_cluster.env | gate.environment()) as driver:
            gate.hold(rb"PUT \S*/step-00000007/manifest\.json")
            assert gate.held.wait(100)
            driver.process.kill()
        gate.release()
        assert set(storage.list_files(torn)) == {"config.yaml", "model.safetensors", "state.pt"}
        with Driver(words, ray_cluster.env | gate.environment()) as driver:
            driver.wait_for("/6  loss")
            gate.shut()
            time.sleep(AWAY_SECONDS)
            gate.open()
            driver.process.send_signal(signal.SIGINT)
            assert driver.finish() == 128 + signal.SIGINT, driver.output
    assert f"{torn} is incomplete and is passed over" in driver.output
    assert re.findall(r"going on from step (\d+)", driver.output) == ["6"]
    step, digest = fingerprint(run)
    assert 6 < step < 18
    assert (step, digest) == fingerprint(finished_run.url, step)


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
    assert "there is no such file, bucket or object" in driver.output


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
