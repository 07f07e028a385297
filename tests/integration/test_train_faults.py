"""A job on two nodes; one that gets another, and loses it again, goes on as if nothing had happened (contract 5)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from parrot_dist import configuration
from parrot_dist.local import process
from parrot_dist.local.cluster import ANY_PORT, RayHead, client_environment, ray_head
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint
from tests.corpus import write_corpus
from tests.faults import fault_proxy
from tests.jobs import Driver, Material, settings, train_here
from tests.processes import cut_power, family
from tests.ranks import distance, trained_parameters

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


# `ray`, but with the setting that keeps the head on loopback it refuses to start a second node.
RAY = """
from ray._private import ray_constants, services
from ray.scripts import scripts
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda *_: "127.0.0.1"
scripts.main()
"""


# Ray takes some seconds to see that a node is lost, and until then it tries to start as many workers as before, each
# time for as long as this.
SOON = {"RAY_health_check_period_ms": "1000", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}
SOON |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_worker_niceness": "0"}  # see the fixture `ray_cluster`


@pytest.fixture(scope="module")
def head(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head of the module's own, which has one logical CPU and can be joined by other nodes."""
    with ray_head(tmp_path_factory.mktemp("head"), s3.env | SOON, num_cpus=1) as head:
        yield replace(head, env=head.env | SOON)


@contextmanager
def node(head: RayHead, env: dict[str, str], folder: Path, cpus: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """Another node of the cluster of `head`, with some logical CPUs, that has joined; it ends with the block."""
    log = folder / "node.log"
    ports = [port for port in ANY_PORT if port not in ("--port=0", "--dashboard-port=0")]
    command = [
        sys.executable,
        "-c",
        RAY,
        "start",
        "--block",
        f"--address={head.address}",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={cpus}",
    ]
    with process.child([*command, *ports], client_environment(head.env | env), log) as child:
        process.wait_until(lambda: "Ray runtime started" in log.read_text(), child, log, timeout_s=60)
        yield child


def distance_to_undisturbed(words: list[str], bucket_url: str) -> float:
    """Of the parameters in a run's newest checkpoint to those of a run on one worker that nothing disturbed."""
    newest = checkpoint.newest(f"{bucket_url}/run").manifest
    whole = [*words, f"output={bucket_url}/whole", f"optim.epochs={newest.epoch + 1}"]
    whole.append(f"checkpoint.every_steps={newest.step}")
    train_here(whole)
    return distance(*(trained_parameters(configuration.load(None, part), newest.step) for part in (words, whole)))


def test_a_submitted_job_has_a_worker_on_each_of_two_nodes(
    material: Material, bucket_url: str, s3: S3Server, head: RayHead, tmp_path: Path
) -> None:
    words = settings(material, bucket_url, "fusion.name=concat", "optim.epochs=1", "scale.placement=SPREAD")
    output: list[str] = []
    with node(head, s3.env | SOON, tmp_path):  # of two logical CPUs, one on each node
        command = ["python", "-m", "parrot_dist.train", *words]
        code = head.submit(command, REPOSITORY, REPOSITORY / "jobs" / "runtime_env.yaml", show=output.append)
    assert code == 0, output
    assert any("starting on 2 workers" in line for line in output)
    assert checkpoint.newest(f"{bucket_url}/run").manifest.finished


def test_a_new_node_makes_a_run_grow_and_its_power_cut_makes_it_shrink_again(
    material: Material, bucket_url: str, s3: S3Server, head: RayHead, tmp_path: Path
) -> None:
    words = ["scale.num_workers=[1,2]", "scale.resize_seconds=1", "checkpoint.every_steps=3"]
    words += ["optim.epochs=1000", "optim.precision=float32", "optim.lr=1e-4", "fusion.name=concat"]
    words = settings(material, bucket_url, *words)
    with fault_proxy(s3.endpoint) as proxy:
        # Where a checkpoint is held back, the run stands still.
        proxy.strike(r"PUT \S*/step-00000009/manifest\.json", "hold")
        with Driver(words, head.env | proxy.environment()) as driver:
            driver.wait_for("starting on 1 workers")
            with node(head, s3.env | SOON, tmp_path) as added:
                driver.wait_for(" on 2 workers")
                proxy.strike(r"PUT \S*/step-00000015/manifest\.json", "hold")
                driver.wait_until(lambda: proxy.done != [])
                cut_power(added.pid)
                driver.wait_for(" on 1 workers")
                proxy.strike("", None)
                driver.wait_for("/6  loss")
            driver.process.send_signal(signal.SIGTERM)
            assert driver.finish() == 128 + signal.SIGTERM, driver.output
    assert distance_to_undisturbed(words, bucket_url) < 1e-3


def test_a_node_that_is_told_to_go_leaves_once_what_was_trained_is_saved(
    material: Material, bucket_url: str, s3: S3Server, head: RayHead, tmp_path: Path
) -> None:
    told = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "500"}  # it would be gone on its own after so long
    watched = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
    corpus = write_corpus(f"{bucket_url}/corpus", speakers=8, clips=40)
    words = [f"data.shards={corpus}", "scale.num_workers=[1,2]", "optim.epochs=1000", "optim.batch_size=4"]
    words += ["optim.precision=float32", "optim.lr=1e-4", "fusion.name=concat"]
    words = settings(material, bucket_url, *words)

    def within_an_epoch() -> bool:  # where nobody saves unless told
        return any(one.manifest.epoch_step for one in checkpoint.find_all(f"{bucket_url}/run"))

    with node(head, s3.env | SOON | told, tmp_path) as added, Driver(words, head.env | watched) as driver:
        driver.wait_for(" on 2 workers")
        driver.wait_for("  loss")
        assert not within_an_epoch()
        os.kill(family(added.pid)[1], signal.SIGTERM)  # the first is its guard
        driver.wait_for(" loses its node at ")
        driver.wait_until(within_an_epoch)
        cut_power(added.pid)
        driver.wait_for(" on 1 workers")
        driver.wait_for("  loss")
        driver.process.send_signal(signal.SIGTERM)
        assert driver.finish() == 128 + signal.SIGTERM, driver.output
    assert distance_to_undisturbed(words, bucket_url) < 1e-3


def test_a_run_whose_only_node_lost_its_power_ends_when_told_to_and_says_where_it_goes_on(
    material: Material, bucket_url: str, s3: S3Server, head: RayHead, tmp_path: Path
) -> None:
    words = ["scale.num_workers=1", "scale.cpus_per_worker=2", "scale.hang_seconds=0", "optim.epochs=1000"]
    words = settings(material, bucket_url, *words, "checkpoint.every_steps=3", "fusion.name=concat")
    with node(head, s3.env | SOON, tmp_path, cpus=2) as added, Driver(words, head.env) as driver:
        driver.wait_for("/6  loss")
        driver.wait_until(lambda: checkpoint.newest(f"{bucket_url}/run") is not None)
        cut_power(added.pid)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.finish(within_s=120) == 128 + signal.SIGTERM, driver.output
    newest = checkpoint.newest(f"{bucket_url}/run")
    assert f"stopped; the same command goes on from {newest.url}" in driver.output
