"""`make bench-scale`: what Ray Train, more workers and checkpoints cost a step, as ratios from one run on two cores.

1. The loop in workers of Ray Train against the same loop in plain processes of torch.distributed.
2. Two workers against one: on the same global batch (strong scaling), and on twice the batch (weak scaling).
3. Checkpoints within the epoch against none: all that one costs the steps, while its upload runs too.

The same runs take turns, and the shortest of all their epochs but the first counts: the machine is not ours alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from parrot_dist import config as configuration
from parrot_dist.config import Config
from parrot_dist.local.cluster import RayHead, ray_head
from tests.benchmarks.spoken import job, make_material
from tests.jobs import Driver
from tests.ranks import train

ROUNDS = 2
EPOCHS = 3
EVERY_STEPS = 4


def plain_epochs(config: Config, folder: Path) -> list[dict[str, float]]:
    """The records of a run without Ray."""
    how, events = train(config, config.scale.num_workers, folder)
    assert how == "finished", how
    return [data for kind, data in events if kind == "epoch"]


def ray_epochs(config: Config, head: RayHead) -> list[dict[str, float]]:
    """The records of a run on a cluster."""
    words = [
        f"{key}={json.dumps(value)}" for key, value in configuration.flat(config).items() if value not in (None, {})
    ]
    with Driver(["--json", *words], head.env) as driver:
        assert driver.finish() == 0, driver.output
    events = [json.loads(line) for line in driver.output.splitlines() if line.startswith("{")]
    return [event for event in events if event["event"] == "epoch"]


class Bench:
    """Runs of one material; `seconds` of training of an utterance in the best epoch of a kind of run."""

    def __init__(self, folder: Path, head: RayHead) -> None:
        self._folder, self._head = folder, head
        self._sources = make_material(folder)
        self._number = 0
        self.seconds: dict[str, float] = {}
        self.waits: dict[str, float] = {}

    def run(self, kind: str, ray: bool, workers: int, batch: int, *words: str) -> None:
        """Run once, and remember what was best."""
        self._number += 1
        config = job(
            self._folder,
            self._sources,
            "encoders.mamba.unfreeze=last:1",
            "encoders.attention.unfreeze=last:1",
            f"name=run-{self._number}",
            f"scale.num_workers={workers}",
            f"optim.batch_size={batch}",
            f"optim.epochs={EPOCHS}",
            *words,
        )
        records = ray_epochs(config, self._head) if ray else plain_epochs(config, self._folder)
        best = max(records[1:], key=lambda record: record["utterances_per_second"])
        seconds = 1 / best["utterances_per_second"]
        print(f"{kind}: {seconds * 1000:.2f} ms of training an utterance", flush=True)
        if seconds < self.seconds.get(kind, float("inf")):
            self.seconds[kind], self.waits[kind] = seconds, best["data_wait"]


def main() -> None:
    with tempfile.TemporaryDirectory() as name, ray_head(Path(name) / "ray", {}, num_cpus=2) as head:
        bench = Bench(Path(name), head)
        for _ in range(ROUNDS):
            bench.run("plain", False, 2, 32)
            bench.run("ray", True, 2, 32)
            bench.run("saving", False, 2, 32, f"checkpoint.every_steps={EVERY_STEPS}")
            bench.run("one", False, 1, 32)
            bench.run("one, half the batch", False, 1, 16)
    took, waits = bench.seconds, bench.waits
    between = 32 * EVERY_STEPS * took["plain"]  # seconds from one checkpoint to the next
    stall = 32 * EVERY_STEPS * (took["saving"] - took["plain"])
    print(
        f"Ray Train: {took['ray'] / took['plain'] - 1:+.1%} of a step's time ({32 * took['plain'] * 1000:.0f} ms)\n"
        f"two workers for one, the same batch: {took['one'] / took['plain']:.2f} times as fast, data wait "
        f"{waits['plain']:.1%} (one: {waits['one']:.1%})\n"
        f"two workers on twice the batch: {took['one, half the batch'] / took['plain']:.2f} times the utterances\n"
        f"a checkpoint every {EVERY_STEPS} steps costs {stall * 1000:.0f} ms, {stall / between:.1%} of the time between"
    )


if __name__ == "__main__":
    main()
