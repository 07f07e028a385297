"""The driver's part in a run: start the workers, show what they say, pass on the wish to stop."""

from __future__ import annotations

import logging
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
from pyarrow.fs import FSSpecHandler, PyFileSystem

from parrot_dist import config as configuration
from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting import history
from parrot_dist.reporting.progress import Progress
from parrot_dist.training import checkpoint
from parrot_dist.training.monitor import Event, Monitor
from parrot_dist.training.prepare import print_places, url_of
from parrot_dist.training.worker import train_worker

POLL_SECONDS = 0.2


@dataclass
class Outcome:
    """How a run ended, as the workers told it."""

    how: str = "lost"
    failures: list[str] = field(default_factory=list)


def launch(config: Config) -> int:
    """Run the job that `config` describes on the cluster that RAY_ADDRESS names, and return the exit code.

    0: all epochs are done. 128 + signal: stopped, with a checkpoint.
    1: the workers were lost more often than `scale.max_failures`.

    Raises:
        UserError: the data or the settings do not allow it.
    """
    # What workers print goes to Ray's logs; what a person should see comes through the monitor.
    with ray.init(log_to_driver=False, logging_level=logging.ERROR), heeded_signals() as signals:
        outcome, error = _watch(config, signals)
    if outcome.failures:
        raise UserError("\n".join(outcome.failures))
    if outcome.how == "stopped":
        print(f"stopped; the same command goes on from {url_of(checkpoint.newest(config.run_url))}")
        return 128 + (signals[0] if signals else signal.SIGTERM)
    if error is not None or outcome.how != "finished":
        print(f"the run was lost: {error}\nthe same command goes on from the newest checkpoint in {config.run_url}")
        return 1
    print_places(config)
    return 0


@contextmanager
def heeded_signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that have come; the second one interrupts."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(config: Config, signals: list[int]) -> tuple[Outcome, BaseException | None]:
    """Train; meanwhile show events and pass on signals. Returns the outcome, and what Ray Train raised."""
    monitor: Any = ray.remote(num_cpus=0)(Monitor).remote()
    trainer, errors = build_trainer(config, monitor), []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the main thread
            errors.append(error)

    progress, outcome = Progress(config.optim.epochs), Outcome()
    # In a thread of its own, so that signals are ours: Ray's handler aborts workers without a checkpoint.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if signals and not asked:
            asked = True
            progress.message("stopping after this step; a checkpoint is being saved")
            ray.get(monitor.stop.remote())
        _show(ray.get(monitor.take.remote()), config, progress, outcome)
    _show(ray.get(monitor.take.remote()), config, progress, outcome)
    progress.close()
    return outcome, errors[0] if errors else None


def build_trainer(config: Config, monitor: Any) -> ray.train.torch.TorchTrainer:
    """The Ray Train job. Its own small state goes to our storage by our filesystem, which rides out outages."""
    scale = config.scale
    fs, path = storage.filesystem(storage.join(config.run_url, "ray"))
    resources: dict[str, float] = {"CPU": float(scale.cpus_per_worker)} | ({"GPU": 1} if scale.use_gpu else {})
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"config": configuration.dumps(config), "monitor": monitor},
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.num_workers,
            use_gpu=scale.use_gpu,
            resources_per_worker=resources,
            placement_strategy=scale.placement,
        ),
        torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if scale.use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            # A name of its own each time: what to go on from is read off our checkpoints, not off Ray's memory.
            name=secrets.token_hex(4),
            storage_path=path,
            storage_filesystem=PyFileSystem(FSSpecHandler(fs)),
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
        ),
    )


def _show(events: list[Event], config: Config, progress: Progress, outcome: Outcome) -> None:
    for event in events:
        if event.kind == "step":
            progress.update(**event.data)
        elif event.kind == "epoch":
            record = history.from_json([event.data["record"]])[0]
            progress.message(history.line(record, config.optim.epochs))
        elif event.kind == "fill":
            progress.fill(**event.data)
        elif event.kind == "message":
            progress.message(event.data["text"])
        else:
            outcome.how = event.data["how"]
            why = event.data.get("why")
            if why and why not in outcome.failures:
                outcome.failures.append(why)
