"""A job whose worker hangs, or that loses a node and gets another, ends as if nothing had happened (contract 5)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from parrot_dist import config
from parrot_dist.local.cluster import ANY_PORT, RayHead, client_environment
from parrot_dist.local.process import child, wait_until
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint
from tests.jobs import Driver, Material, fingerprint, settings, train_here
from tests.processes import cut_power, train_workers
from tests.ranks import distance, trained_parameters

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def test_a_rank_that_hangs_is_named_and_the_run_goes_on_without_it(
    material: Material, bucket_url: str, ray_cluster: RayHead, finished_run
) -> None:
    words = settings(material, bucket_url, "checkpoint.every_steps=1", "scale.hang_seconds=4")
    with Driver(words, ray_cluster.env) as driver:
        driver.wait_for("/6  loss")
        worker = train_workers(ray_cluster.address)[-1]
        os.kill(worker, signal.SIGSTOP)
        try:
            assert driver.finish() == 0, driver.output
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    named = r"rank \d on \S+ hangs at step \d+ in parrot_dist\.\S+, line \d+: no sign of life for 4 s"
    assert len(re.findall(named, driver.output)) == 1
    assert len(re.findall(r"(starting|going on from step \d+ .*) on 2 workers", driver.output)) == 2
    assert fingerprint(f"{bucket_url}/run") == fingerprint(finished_run.url)


# `ray`, but with the setting that keeps the head on loopback it refuses to start a second node.
RAY = """
from ray._private import ray_constants, services
from ray.scripts import scripts
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda *_: "127.0.0.1"
scripts.main()
"""


@contextmanager
def node(head: RayHead, env: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another node of the cluster of `head`, with three logical CPUs, that has joined; it ends with the block."""
    log = folder / f"node-{len(list(folder.iterdir()))}.log"
    ports = [port for port in ANY_PORT if port not in ("--port=0", "--dashboard-port=0")]
    command = [
        sys.executable,
        "-c",
        RAY,
        "start",
        "--block",
        f"--address={head.address}",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=3",
    ]
    with child([*command, *ports], client_environment(env | head.env), log) as process:
        wait_until(lambda: "Ray runtime started" in log.read_text(), process, log, timeout_s=60)
        yield process


def test_a_lost_node_shrinks_the_run_and_a_new_one_makes_it_grow_again(
    material: Material, bucket_url: str, ray_cluster: RayHead, s3: S3Server, tmp_path: Path
) -> None:
    # A worker fills the three CPUs of a node; the head, with four, has room for one as well.
    words = ["scale.num_workers=[1,2]", "scale.cpus_per_worker=3", "scale.resize_seconds=1", "optim.epochs=1000"]
    words += ["optim.precision=float32", "optim.lr=1e-4", "fusion.name=concat", "checkpoint.every_steps=3"]
    words = settings(material, bucket_url, *words)
    # Ray takes some seconds to see that a node is lost, and until then waits for it for as long as this.
    env = ray_cluster.env | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    with node(ray_cluster, s3.env, tmp_path) as lost, Driver(words, env) as driver:
        driver.wait_for("starting on 2 workers")
        driver.wait_for("/6  loss")
        cut_power(lost.pid)
        driver.wait_for(" on 1 workers")
        (worker,) = train_workers(ray_cluster.address)
        driver.wait_for("/6  loss")
        os.kill(worker, signal.SIGSTOP)  # so that it has not done all epochs when the new node has joined
        with node(ray_cluster, s3.env, tmp_path):
            os.kill(worker, signal.SIGCONT)
            driver.wait_for(" on 2 workers")
            driver.wait_for("/6  loss")
            driver.process.send_signal(signal.SIGTERM)
            assert driver.finish() == 128 + signal.SIGTERM, driver.output
    step = checkpoint.newest(f"{bucket_url}/run").manifest.step
    whole = [f"output={bucket_url}/whole", f"optim.epochs={-(-step // 6)}", f"checkpoint.every_steps={step}"]
    train_here([*words, *whole])
    ours, theirs = (trained_parameters(config.load(None, part), step) for part in (words, [*words, *whole]))
    assert distance(ours, theirs) < 1e-3
