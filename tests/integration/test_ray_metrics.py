"""What a run on a real cluster leaves for TensorBoard, tells Prometheus, and tells a program that reads its output."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parrot_dist import storage
from parrot_dist.local.cluster import RayHead
from tests.jobs import Driver, Material, settings
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster


def test_event_files_lie_beside_the_checkpoints(finished_run, tmp_path: Path) -> None:
    place = f"{finished_run.url}/tensorboard"
    for name in storage.list_files(place):
        (tmp_path / name).write_bytes(storage.read_bytes(f"{place}/{name}"))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    # One file a checkpoint, named by the second: several of one second are read in any order.
    assert sorted(event.step for event in events.Scalars("validation/uar")) == [6, 12, 18]
    steps = [event.step for event in events.Scalars("train/marginal_error")]
    assert 0 < len(steps) <= 18
    assert len(steps) == len(set(steps))


def test_a_running_job_is_on_rays_metrics_endpoint_and_speaks_json(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    words = settings(material, bucket_url, "optim.epochs=1000", "--json")
    soon = {"RAY_metrics_report_interval_ms": "200"}  # ten seconds unless set
    steps = ["train_loss", "train_utterances_per_second", "train_data_wait", "train_marginal_error"]
    wanted = [*steps, "validation_uar", "checkpoint_stall"]
    with Driver(words, ray_cluster.env | soon) as driver:
        driver.wait_for('"event": "checkpoint"')
        wait_until(lambda: all(re.search(rf'ray_parrot_{name}{{.*run="run"', metrics(ray_cluster)) for name in wanted))
        driver.process.send_signal(signal.SIGTERM)
        assert driver.finish() == 128 + signal.SIGTERM, driver.output
    events = [json.loads(line) for line in driver.output.splitlines()]
    kinds = {event["event"] for event in events} - {"warning"}  # of a CPU that only emulates bf16
    assert kinds == {"start", "message", "epoch", "checkpoint", "end"}
    assert events[0] == {"event": "start", "run": f"{bucket_url}/run", "workers": 2, "step": 0, "checkpoint": None}
    assert any("selective scan: PyTorch" in event.get("text", "") for event in events)
    # A stop at the very end of an epoch tells of the epoch after its checkpoint.
    saved = [event for event in events if event["event"] == "checkpoint"]
    assert (events[-1]["how"], events[-1]["newest"]) == ("stopped", saved[-1]["url"])
    assert all(0 < event["stall"] < 500 for event in saved)


def metrics(head: RayHead) -> str:
    """What Prometheus would read from the node."""
    log = Path(head.env["RAY_AUTH_TOKEN_PATH"]).with_name("ray.log").read_text()
    scratch = re.search(r"/tmp/ray-\w+", log)
    [service] = json.loads(Path(scratch[0], "prom_metrics_service_discovery.json").read_text())
    pages = []
    for target in service["targets"]:
        # Of the servers that Ray names, those that were given any free port are named with port 0.
        with suppress(URLError), urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)
