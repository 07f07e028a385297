"""`make bench-scale`: what Ray Train, more workers and checkpoints cost a step, as ratios from one run.

1. The loop in workers of Ray Train against the same loop in plain processes of torch.distributed: where the workers
   leave a core to Ray's own processes, and where they leave none; there also Ray Train without anything of ours but
   the loop.
2. More workers against one: on the same global batch (strong scaling), and on one that grows with them (weak scaling).
3. Checkpoints every few steps against none: all that one costs the steps, while its upload runs too.

Each pair of runs takes turns, see `turns`. A step has the same utterances in every run with the same batch. It goes
from batch to batch, and so has all waiting for data in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import numpy as np
import torch.distributed as dist
import torch.multiprocessing

from parrot_dist import configuration, train
from parrot_dist.config import Config
from parrot_dist.local.cluster import RayHead, client_environment, ray_head
from parrot_dist.local.process import exit_on_sigterm
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.training.inference import Place
from parrot_dist.training.monitor import Reporter
from parrot_dist.training.rank import train_rank
from tests.benchmarks.spoken import job, make_material
from tests.benchmarks.turns import STEPS, Gate, Run, alternate
from tests.processes import actors
from tests.ranks import Listener

EPOCHS = 6  # the first does not count
EVERY_STEPS = 9  # of a run that saves
BATCH, SHARE = 32, 16  # utterances: of all workers where they share one batch; of each where the batch grows with them
PINNED = "pinned-"  # how the names of runs begin whose workers share a core
MANY = [count for count in (2, 4, 8) if count <= max(2, os.cpu_count() or 1)]  # workers


class Stamps(Listener):
    """Notes how long each step took, and waits for its turn before it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._base = base_of(config)
        self._gate = Gate(self._base)
        self._began: dict[int, float] = {}
        self._waited: dict[int, float] = {}
        self._ends: set[int] = set()

    def at(self, step: int | None) -> None:
        if step is None:
            return
        if step not in self._began and step % STEPS == 1:  # not where there are checkpoints
            self._waited[step] = self._gate.wait()
        if self._gate.alone:
            return
        self._began[step] = time.perf_counter()  # anew if it was a checkpoint or validation that came this far

    def note(self, record: EpochRecord) -> None:
        self._ends.add(record.step)

    def write(self) -> None:
        """Leave the seconds of all steps but the first epoch's and each one's last, after which comes validation."""
        first = min(self._ends)
        seconds = {
            step: self._began[step + 1] - began - self._waited.get(step + 1, 0.0)
            for step, began in self._began.items()
            if step >= first and step + 1 not in self._ends and step + 1 in self._began
        }
        saved = [data for kind, data in self.events if kind == "checkpoint"]
        stalls = [data["stall"] for data in saved if data["step"] > first and data["step"] not in self._ends]
        Path(f"{self._base}.json").write_text(json.dumps({"seconds": seconds, "stalls": stalls}))


def base_of(config: Config) -> Path:
    """Of the names of what a run leaves for this benchmark."""
    return Path(config.output, config.name)


def train_in_turns(config: Config, place: Place) -> None:
    """The loop, and nothing else."""
    stamps = Stamps(config) if place.rank == 0 else None
    train_rank(config, place, stamps or Listener(), stamps.note if stamps else lambda record: None)
    if stamps:
        stamps.write()


def plain_rank(rank: int, store: str, text: str) -> None:
    """One rank without Ray."""
    config = configuration.loads(text)
    pin(config)
    world = config.scale.num_workers
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    train_in_turns(config, Place(rank, world))
    dist.destroy_process_group()


def bare_rank(settings: dict[str, Any]) -> None:
    """One rank in a worker of Ray Train, without what we have put around it."""
    import ray.train

    context, config = ray.train.get_context(), configuration.loads(settings["config"])
    pin(config)
    train_in_turns(config, Place(context.get_world_rank(), context.get_world_size()))


def ray_rank(settings: dict[str, Any]) -> None:
    """`train_worker`, whose first rank also leaves its stamps."""
    import ray.train

    from parrot_dist.training import worker

    config = configuration.loads(settings["config"])
    pin(config)
    if ray.train.get_context().get_world_rank() > 0:
        return worker.train_worker(settings)
    stamps, heed, report = Stamps(config), Reporter.at, worker._report

    def at(reporter: Reporter, step: int | None) -> None:
        stamps.at(step)
        heed(reporter, step)

    def note(record: EpochRecord) -> None:
        stamps.note(record)
        report(record)

    with patch.object(Reporter, "at", at), patch.object(worker, "_report", note):
        worker.train_worker(settings)
    return stamps.write()


def pin(config: Config) -> None:
    """Let this thread, and those that it will start, share the first core, if the run is one that leaves the others."""
    if config.name.startswith(PINNED):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def drive_plain(text: str) -> int:
    """A run of plain processes."""
    config = configuration.loads(text)
    arguments = (f"{base_of(config)}.store", text)
    torch.multiprocessing.spawn(plain_rank, arguments, nprocs=config.scale.num_workers)
    return 0


def drive_bare(text: str) -> int:
    """A run of Ray Train as its documentation has it."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config = configuration.loads(text)
    with ray.init(log_to_driver=False):
        TorchTrainer(
            bare_rank,
            train_loop_config={"config": text},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=config.scale.num_workers, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=tempfile.mkdtemp(dir=Path(config.output).absolute())),
        ).fit()
    return 0


def drive_ray(text: str) -> int:
    """`parrot_dist.train` with workers that leave their stamps."""
    from parrot_dist.training import trainer

    settings = {
        key: value for key, value in configuration.flat(configuration.loads(text)).items() if value not in (None, {})
    }
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    with patch.object(trainer, "train_worker", ray_rank), patch.object(sys, "argv", ["train", "--quiet", *words]):
        return train.main()


Launcher = Literal["plain", "bare", "ray"]
DRIVERS: dict[Launcher, Callable[[str], int]] = {"plain": drive_plain, "bare": drive_bare, "ray": drive_ray}


class Kind(NamedTuple):
    """A kind of run; `pinned`: all its workers on one core."""

    workers: int = 2
    batch: int = BATCH
    launcher: Launcher = "plain"
    pinned: bool = False
    saving: bool = False
    head: str = "parrot"
    unfreeze: str = "last:1"


class Result(NamedTuple):
    """What a run came to: step -> seconds, and the seconds that it stood still for each checkpoint within an epoch."""

    seconds: dict[str, float]
    stalls: list[float]

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        return float(np.mean(list(self.seconds.values())))


class Bench:
    """Runs on one material."""

    def __init__(self, folder: Path, head: RayHead) -> None:
        self._folder, self._head = folder, head
        self._sources = make_material(folder)
        self._number = 0

    def compare(self, kind: Kind, other: Kind) -> tuple[Result, Result]:
        """Both, in turns."""
        configs = self._config(kind), self._config(other)
        with self._run(kind, configs[0]) as first, self._run(other, configs[1]) as second:
            alternate(first, second)
        one, two = (Result(**json.loads(Path(f"{base_of(config)}.json").read_text())) for config in configs)
        return one, two

    def _config(self, kind: Kind) -> Config:
        self._number += 1
        config = job(
            self._folder,
            self._sources,
            f"encoders.mamba.unfreeze={kind.unfreeze}",
            f"encoders.attention.unfreeze={kind.unfreeze}",
            f"name={PINNED if kind.pinned else 'run-'}{self._number}",
            f"scale.num_workers={kind.workers}",
            f"optim.batch_size={kind.batch}",
            f"optim.epochs={EPOCHS}",
            f"checkpoint.every_steps={EVERY_STEPS if kind.saving else 0}",
            f"fusion.name={kind.head}",
        )
        Path(config.output).mkdir(exist_ok=True)
        return config

    def _run(self, kind: Kind, config: Config) -> Run:
        return Run(base_of(config), partial(self._start, kind, config), partial(self._ray_processes, kind))

    def _start(self, kind: Kind, config: Config) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "tests.benchmarks.bench_scale", kind.launcher, configuration.dumps(config)]
        env = client_environment(self._head.env | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"})  # as on a real cluster
        return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)

    def _ray_processes(self, kind: Kind) -> list[int]:
        """Those of the run's actors; not the node's agents, which are there without a run too."""
        if kind.launcher == "plain":
            return []
        agents = actors(self._head.address, "Agent")
        return [pid for pid in actors(self._head.address, "ray::") if pid not in agents]


def show_ray(bench: Bench, ray: Kind, what: str) -> None:
    """Print what Ray Train adds to the steps of a kind of run; the error is that of the turns' mean."""
    with_ray, without = bench.compare(ray, ray._replace(launcher="plain"))
    turns: dict[int, list[float]] = {}
    for step, seconds in without.seconds.items():
        if step in with_ray.seconds:
            turns.setdefault((int(step) - 1) // STEPS, []).append(with_ray.seconds[step] / seconds - 1)
    added = np.array([np.mean(ratios) for ratios in turns.values()])
    error = added.std(ddof=1) / np.sqrt(len(added))
    print(
        f"{what}: {added.mean():+.1%} (standard error {error:.1%}) of a step's {without.step * 1000:.0f} ms", flush=True
    )


def show_scaling(bench: Bench, many: Kind, one: Kind, what: str) -> None:
    """Print what more workers bring."""
    results = bench.compare(many, one)
    rates = [kind.batch / result.step for kind, result in zip((many, one), results, strict=True)]
    print(
        f"{many.workers} workers, {what}: {rates[0] / rates[1]:.2f} times the utterances a second of one",
        flush=True,
    )


def show_saving(bench: Bench, saving: Kind, what: str) -> None:
    """Print how long steps wait for a checkpoint, and what it adds to all of them from one to the next."""
    with_them, without = bench.compare(saving, saving._replace(saving=False))
    added = len(without.seconds) * (with_them.step - without.step)
    stall, cost = np.median(with_them.stalls), added / len(with_them.stalls)
    print(
        f"a checkpoint, {what}: steps stand still for {stall * 1000:.0f} ms; with its upload beside them it costs them "
        f"{cost * 1000:.0f} ms, 1 % of the time between if there is one every {100 * cost:.0f} s",
        flush=True,
    )


def main() -> int:
    exit_on_sigterm()
    # Ray lowers its workers' priority, which tells only where others want the cores.
    env = {"RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as name, ray_head(Path(name) / "ray", env, num_cpus=max(MANY)) as head:
        bench = Bench(Path(name), head)
        show_ray(bench, Kind(1, launcher="ray"), "Ray Train, 1 worker")
        show_ray(bench, Kind(1, launcher="ray", pinned=True), "Ray Train, 1 worker that keeps to a core")
        show_ray(bench, Kind(launcher="ray", pinned=True), "Ray Train, 2 workers that share a core")
        show_ray(bench, Kind(launcher="ray"), "Ray Train, 2 workers")
        show_ray(bench, Kind(launcher="bare"), "Ray Train alone, 2 workers")
        for count in MANY:
            show_scaling(bench, Kind(count), Kind(1), "the same batch")
            show_scaling(bench, Kind(count, SHARE * count), Kind(1, SHARE), "a batch that grows with them")
        show_saving(bench, Kind(saving=True, unfreeze="none"), "encoders frozen")
        show_saving(bench, Kind(saving=True), "encoders partly trained")
        show_saving(bench, Kind(saving=True, head="concat"), "encoders partly trained and no reference rows")
    return 0


if __name__ == "__main__":
    sys.exit(DRIVERS[sys.argv[1]](sys.argv[2]) if len(sys.argv) > 1 else main())  # type: ignore[index]
