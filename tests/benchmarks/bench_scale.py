"""`make bench-scale`: what Ray Train, more workers and checkpoints cost a step, as ratios from one run.

1. The loop in workers of Ray Train against the same loop in plain processes of torch.distributed. On two cores one
   worker leaves a core to Ray's own servers, and two leave none.
2. More workers against one: on the same global batch (strong scaling), and on one that grows with them (weak scaling).
3. Checkpoints every few steps against none: all that one costs the steps, while its upload runs too; with a head that
   keeps reference rows, and one that does not.

The kinds of runs take turns, and of each step the shortest time over the rounds counts: the machine is not ours alone.
A step has the same utterances in every run with the same batch. It goes from batch to batch, waiting for data included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch.distributed as dist
import torch.multiprocessing

from parrot_dist import configuration, train
from parrot_dist.config import Config
from parrot_dist.local.cluster import RayHead, client_environment, ray_head
from parrot_dist.training.inference import Place
from parrot_dist.training.loop import train_rank
from tests.benchmarks.spoken import job, make_material
from tests.ranks import Listener

ROUNDS = 3
EPOCHS = 3  # the first does not count
BATCH, SHARE = 32, 16  # utterances: of all workers where they share one batch; of each where the batch grows with them
EVERY_STEPS = 4
MANY = [count for count in (2, 4, 8) if count <= max(2, os.cpu_count() or 1)]  # workers


class Stamps(Listener):
    """Notes when each step began."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[int, float] = {}

    def at(self, step: int | None) -> None:
        if step is not None:
            self.began[step] = time.perf_counter()  # anew if it was validation that came this far

    def write(self, config: Config) -> None:
        records = [data for kind, data in self.events if kind == "epoch"]
        notes_of(config).write_text(json.dumps({"began": self.began, "records": records}))


def notes_of(config: Config) -> Path:
    """Where the first rank of a run leaves its stamps."""
    return Path(config.output, f"{config.name}.json")


def plain_rank(rank: int, store: str, text: str) -> None:
    """One rank without Ray."""
    config, stamps = configuration.loads(text), Stamps()
    world = config.scale.num_workers
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    train_rank(config, Place(rank, world), stamps, lambda record: None)
    dist.destroy_process_group()
    if rank == 0:
        stamps.write(config)


def ray_rank(settings: dict[str, Any]) -> None:
    """`train_worker`, which also leaves its stamps."""
    import ray.train

    from parrot_dist.training.monitor import Reporter
    from parrot_dist.training.worker import train_worker

    stamps, heed = Stamps(), Reporter.at

    def at(self: Reporter, step: int | None) -> None:
        stamps.at(step)
        heed(self, step)

    with patch.object(Reporter, "at", at):
        train_worker(settings)
    if ray.train.get_context().get_world_rank() == 0:
        stamps.write(configuration.loads(settings["config"]))


def drive() -> int:
    """`parrot_dist.train` with workers that leave their stamps."""
    from parrot_dist.training import trainer

    with patch.object(trainer, "train_worker", ray_rank):
        return train.main()


class Kind(NamedTuple):
    """A kind of run."""

    workers: int
    batch: int
    ray: bool = False
    saving: bool = False
    head: str = "parrot"


PLAIN = Kind(2, BATCH)
RAY, SAVING = PLAIN._replace(ray=True), PLAIN._replace(saving=True)
BARE, BARE_SAVING = PLAIN._replace(head="concat"), SAVING._replace(head="concat")
STRONG = [Kind(count, BATCH) for count in MANY]
WEAK = [Kind(count, SHARE * count) for count in MANY]
ONE, ONE_SHARE = Kind(1, BATCH), Kind(1, SHARE)
ONE_RAY = ONE._replace(ray=True)
KINDS = list(dict.fromkeys([PLAIN, RAY, SAVING, BARE, BARE_SAVING, ONE, ONE_RAY, ONE_SHARE, *STRONG, *WEAK]))


class Bench:
    """Runs on one material.

    Attributes:
        seconds: of a kind of run (epochs, steps): all epochs but the first, all steps of each but the last, after
            which comes validation.
        waits: the share of the epochs' time that was spent on waiting for data.
    """

    def __init__(self, folder: Path, head: RayHead) -> None:
        self._folder, self._head = folder, head
        self._sources = make_material(folder)
        self._number = 0
        self.seconds: dict[Kind, np.ndarray] = {}
        self.waits: dict[Kind, float] = {}

    def run(self, kind: Kind) -> None:
        """Run once more, and keep what was best."""
        self._number += 1
        config = job(
            self._folder,
            self._sources,
            "encoders.mamba.unfreeze=last:1",
            "encoders.attention.unfreeze=last:1",
            f"name=run-{self._number}",
            f"scale.num_workers={kind.workers}",
            f"optim.batch_size={kind.batch}",
            f"optim.epochs={EPOCHS}",
            f"checkpoint.every_steps={EVERY_STEPS if kind.saving else 0}",
            f"fusion.name={kind.head}",
        )
        self._train(config, kind.ray)
        notes = json.loads(notes_of(config).read_text())
        seconds = np.diff(list(notes["began"].values())).reshape(EPOCHS, -1)[1:, :-1]
        print(f"{kind}: {seconds.mean() * 1000:.1f} ms a step", flush=True)
        self.seconds[kind] = np.minimum(seconds, self.seconds.get(kind, np.inf))
        wait = float(np.mean([record["data_wait"] for record in notes["records"][1:]])) if not kind.ray else np.nan
        self.waits[kind] = min(wait, self.waits.get(kind, np.inf))

    def _train(self, config: Config, ray: bool) -> None:
        if not ray:
            arguments = (str(self._folder / f"store-{self._number}"), configuration.dumps(config))
            torch.multiprocessing.spawn(plain_rank, arguments, nprocs=config.scale.num_workers)
            return
        settings = {key: value for key, value in configuration.flat(config).items() if value not in (None, {})}
        words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        command = [sys.executable, "-m", "tests.benchmarks.bench_scale", "--quiet", *words]
        env = client_environment(self._head.env | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"})  # as on a real cluster
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)

    def rate(self, kind: Kind) -> float:
        """Utterances per second."""
        return float(kind.batch / self.seconds[kind].mean())


def report(bench: Bench) -> None:
    """Print what the runs say."""
    for ray, without, what in ((ONE_RAY, ONE, "1 worker"), (RAY, PLAIN, "2 workers")):
        step = bench.seconds[without].mean()
        print(f"Ray Train, {what}: {bench.seconds[ray].mean() / step - 1:+.1%} of a step's {step * 1000:.0f} ms")
    for kinds, one, what in ((STRONG, ONE, "the same batch"), (WEAK, ONE_SHARE, "a batch that grows with them")):
        for kind in kinds:
            print(
                f"{kind.workers} workers, {what}: {bench.rate(kind) / bench.rate(one):.2f} times the utterances a "
                f"second of one, data wait {bench.waits[kind]:.1%} (one: {bench.waits[one]:.1%})"
            )
    for saving, without, what in ((BARE_SAVING, BARE, "without"), (SAVING, PLAIN, "with")):
        between, stall = stall_of(bench.seconds[saving], bench.seconds[without])
        print(
            f"a checkpoint {what} reference rows, every {between:.1f} s, costs {stall * 1000:.0f} ms: 1 % of the time "
            f"between if there is one every {100 * stall:.0f} s"
        )


def stall_of(saving: np.ndarray, without: np.ndarray) -> tuple[float, float]:
    """Seconds between checkpoints, and what one adds to the steps, from the times (epochs, steps) of both."""
    steps = np.arange(without.size + len(without)).reshape(len(without), -1)[:, :-1] + without.shape[1] + 2
    return EVERY_STEPS * float(without.mean()), float((saving - without).sum() / (steps % EVERY_STEPS == 0).sum())


def main() -> int:
    # Ray lowers its workers' priority, which tells only where others want the cores: see ROUNDS.
    env = {"RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as name, ray_head(Path(name) / "ray", env, num_cpus=max(MANY)) as head:
        bench = Bench(Path(name), head)
        for _ in range(ROUNDS):
            for kind in KINDS:
                bench.run(kind)
        report(bench)
    return 0


if __name__ == "__main__":
    sys.exit(drive() if len(sys.argv) > 1 else main())
