"""A job that is stopped, or loses its driver or a worker, goes on as if nothing had happened (contract 5)."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from parrot_dist import configuration, s3client, storage
from parrot_dist.local.cluster import RayHead
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.inference import Place
from parrot_dist.training.rank import train_rank
from tests.corpus import write_corpus
from tests.faults import FaultProxy, fault_proxy
from tests.jobs import Driver, Material, fingerprint, settings, train_here
from tests.processes import actors, data_processes, train_workers
from tests.ranks import Listener
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster
AWAY_SECONDS = 20.0  # of the store
LONGEST_STOP_S = 120.0  # from SIGTERM to the end, on a busy machine


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_was_stopped_and_loses_a_worker_then_all_and_then_has_one_that_hangs_ends_with_the_same_parameters(
    material: Material, bucket_url: str, ray_cluster: RayHead, s3: S3Server, finished_run
) -> None:
    words = ["checkpoint.every_steps=4", "scale.hang_seconds=15", "scale.max_failures=9"]
    words, run = settings(material, bucket_url, *words), f"{bucket_url}/run"
    # A run whose checkpoint is held back takes steps up to the next one only, so that a signal finds it at work.
    with fault_proxy(s3.endpoint) as proxy, Driver(words, ray_cluster.env | proxy.environment()) as driver:
        proxy.strike(r"PUT \S*/step-00000004/manifest\.json", "hold")
        driver.wait_for("/6  loss")
        driver.process.send_signal(signal.SIGTERM)
        driver.wait_for("stopping after this step")
        proxy.strike("", None)
        assert driver.finish(LONGEST_STOP_S) == 128 + signal.SIGTERM, driver.output
    step, digest = fingerprint(run)
    assert f"stopped; the same command goes on from {run}/checkpoints/step-{step:08d}" in driver.output
    assert 0 < step < 18
    assert (step, digest) == fingerprint(finished_run.url, step)
    with fault_proxy(s3.endpoint) as proxy, Driver(words, ray_cluster.env | proxy.environment()) as driver:
        proxy.strike(r"PUT \S*/step-0000001[68]/manifest\.json", "hold")
        for number, victims in ((signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGSTOP, 1)):
            driver.wait_for(" on 2 workers")
            driver.wait_for("/6  loss")
            for worker in train_workers(ray_cluster.address)[-victims:]:
                os.kill(worker, number)
        proxy.strike("", None)
        assert driver.finish() == 0, driver.output
    starts = [int(start) for start in re.findall(r"going on from step (\d+) .* on 2 workers", driver.output)]
    assert len(starts) >= 4  # more, if the machine was so busy that a worker seemed to hang
    assert starts == sorted(starts)
    assert starts[0] == step
    named = r"rank \d on \S+ hangs at step \d+ in parrot_dist\.\S+, line \d+: no (sign of life|progress) for 15 s"
    assert re.search(named, driver.output)
    assert fingerprint(run) == fingerprint(finished_run.url)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_loses_its_data_process_its_driver_amid_a_checkpoint_and_its_store_for_a_while_on_a_node_with_a_full_disk(
    material: Material, bucket_url: str, ray_cluster: RayHead, s3: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "shards.cache").symlink_to("/dev/full")
    words = ["data.keep_frozen=false", "data.window=1", "data.node_cache_gb=1", f"data.node_cache={tmp_path}"]
    words += ["scale.num_workers=1", "optim.batch_size=4", "optim.epochs=2", "checkpoint.every_steps=2"]
    words = settings(material, bucket_url, *words)
    undisturbed = train_here([*words, f"output={bucket_url}/undisturbed", "data.node_cache_gb=0"])
    words, run = [*words, "data.workers=1"], f"{bucket_url}/run"
    with fault_proxy(s3.endpoint) as proxy:
        with Driver(words, ray_cluster.env | proxy.environment()) as driver:
            proxy.strike(r"PUT \S*/step-00000002/manifest\.json", "hold")  # so that most of the epoch is to be decoded
            driver.wait_until(lambda: proxy.done != [])
            process = min(data_processes(ray_cluster.address))  # later ones may be those of reference rows
            os.kill(process, signal.SIGKILL)
            proxy.strike(r"PUT \S*/step-00000010/manifest\.json", "hold")
            driver.wait_until(lambda: proxy.done != [])
            driver.process.kill()
            wait_until(lambda: train_workers(ray_cluster.address) == [])
        torn = f"{run}/checkpoints/step-00000010"
        assert set(storage.list_files(torn)) == {
            "config.yaml",
            "model.safetensors",
            "reference.safetensors",
            "state.pt",
        }
        proxy.strike(r"PUT \S*/step-00000012/", "hold")  # at the end of an epoch: the next one has yet to be read
        with Driver(words, ray_cluster.env | proxy.environment()) as second:
            second.wait_until(lambda: proxy.done != [])
            proxy.strike("", "drop")
            time.sleep(AWAY_SECONDS)
            for missed in (r"PUT \S*/step-00000012/", r"GET \S*\.tar"):
                second.wait_until(lambda what=missed: any(re.match(what, request) for _, request in proxy.done))
            proxy.strike("", None)
            assert second.finish() == 0, second.output
    assert driver.output.count("on 1 workers") == 2
    assert re.findall(r"going on from step (\d+)", second.output)[0] == "8"
    assert f"{torn} is incomplete and is passed over" in second.output
    assert fingerprint(run) == fingerprint(undisturbed)


@pytest.fixture
def waiting(material: Material, bucket_url: str, ray_cluster: RayHead) -> Iterator[Driver]:
    """A driver that waits for more workers than the cluster has room for."""
    words = settings(material, bucket_url, "fusion.name=cnn", "scale.cpus_per_worker=3")
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("waiting until the cluster has 6 CPUs for 2 workers; it has 4")
        yield driver


def test_a_job_that_still_waits_for_its_workers_ends_at_once_when_told_to(waiting: Driver) -> None:
    waiting.process.send_signal(signal.SIGTERM)
    assert waiting.finish(LONGEST_STOP_S) == 128 + signal.SIGTERM, waiting.output
    assert "nothing was saved yet" in waiting.output


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_driver_that_loses_what_workers_report_to_ends_at_once_and_says_so(
    waiting: Driver, ray_cluster: RayHead
) -> None:
    waiting.wait_until(lambda: actors(ray_cluster.address, "ray::Monitor") != [])
    (monitor,) = actors(ray_cluster.address, "ray::Monitor")
    os.kill(monitor, signal.SIGKILL)
    assert waiting.finish(within_s=120) == 1, waiting.output
    assert "the run was lost: the process on this node that workers report to has ended" in waiting.output
    assert "Traceback" not in waiting.output


class Watcher(Listener):
    """Lets a checkpoint that a store holds back arrive once the run is at a step."""

    def __init__(self, proxy: FaultProxy, step: int, run_url: str) -> None:
        super().__init__()
        self.proxy, self.step, self.run_url = proxy, step, run_url
        self.there: list[Found] | None = None

    def at(self, step: int | None) -> None:
        """What was there of checkpoints when the step was reached, and the upload under way."""
        if step == self.step and self.there is None:
            wait_until(lambda: self.proxy.done != [])
            self.there = checkpoint.find_all(self.run_url)
            self.proxy.strike("", None)


def test_steps_are_taken_while_a_store_takes_its_time_over_a_checkpoint(
    material: Material, bucket_url: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["optim.epochs=1", "fusion.name=concat", "checkpoint.every_steps=3"]
    config = configuration.load(None, settings(material, bucket_url, *words))
    with fault_proxy(s3.endpoint) as proxy, monkeypatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.setenv(name, proxy.endpoint)
        S3FileSystem.clear_instance_cache()  # s3fs keeps its clients
        proxy.strike(r"PUT \S*/step-00000003/manifest\.json", "hold")
        watcher = Watcher(proxy, 5, config.run_url)
        train_rank(config, Place(), watcher, lambda record: None)
    S3FileSystem.clear_instance_cache()
    s3client._make_client.cache_clear()
    assert watcher.there == []
    assert [event["step"] for kind, event in watcher.events if kind == "checkpoint"] == [3, 6]


def test_a_store_that_goes_away_ends_the_run_at_once_though_only_one_worker_writes(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    fs, _ = storage.filesystem("s3://vanishing")
    fs.mkdir("vanishing")
    corpus = write_corpus(f"{bucket_url}/corpus", speakers=8, clips=9)
    for shard in [f"{corpus}/{name}" for name in storage.list_files(corpus) if name.endswith(".tar")]:
        storage.write_bytes(shard, storage.read_bytes(shard).replace(b"fLaC", b"none", 1))
    words = ["fusion.name=cnn", "optim.epochs=1000", f"data.shards={corpus}", "data.max_broken=0.2"]
    with Driver(settings(material, "s3://vanishing", *words), ray_cluster.env) as driver:
        driver.wait_for("/6  loss")
        while fs.exists("vanishing"):
            with suppress(OSError):  # something was written while it was emptied
                fs.rm("vanishing", recursive=True)
        assert driver.finish() == 2, driver.output
    assert "skipped s0" in driver.output
    # The worker meets the loss when it writes, the driver when it renews its lease; either may be the first.
    met = r"^error: s3://vanishing/run/\S+: (this driver's lease is gone|there is no such file, bucket or object)"
    assert re.search(met, driver.output, re.MULTILINE), driver.output
    assert driver.output.count("starting on 2 workers") == 1
    assert "Traceback" not in driver.output


def test_a_loss_that_is_not_finite_ends_the_job_at_once_and_names_the_batch(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    words = ["scale.num_workers=1", "fusion.name=cnn", "optim.lr=1e30", "optim.clip_norm=0"]
    with Driver(settings(material, bucket_url, *words), ray_cluster.env) as driver:
        assert driver.finish() == 2, driver.output
    named = r"error: the loss of step 1 is \S+ and its gradient's norm \S+; the batch was (s\d+-\d{4}(, |$)){8}"
    assert re.search(named, driver.output, re.MULTILINE), driver.output
    assert driver.output.count("starting on 1 workers") == 1
    assert "Traceback" not in driver.output
