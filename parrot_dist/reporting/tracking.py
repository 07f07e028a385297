"""The curves of a run: TensorBoard's event files beside its checkpoints, and the services that `tracking` names.

Trackers are told at each checkpoint, and only of what lies before it. A run that goes on from there was never heard of
beyond it, and continues every curve without a point twice, whoever was killed in between. (A driver that is killed
while a checkpoint is told of leaves a gap of that one.)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.errors import UserError, without_userinfo

FOLDER = "tensorboard"  # of the run
IDENTITY = "tracking_id"  # of the run: what services know it by; gone with the run's folder, unlike its name

CURVES: dict[str, dict[str, str]] = {
    "step": {
        "loss": "train/loss",
        "rate": "train/utterances_per_second",
        "data_wait": "train/data_wait",
        "marginal_error": "train/marginal_error",
    },
    "epoch": {
        "train_loss": "epoch/train_loss",
        "utterances_per_second": "epoch/utterances_per_second",
        "data_wait": "epoch/data_wait",
        "marginal_error": "epoch/marginal_error",
        "seconds": "epoch/seconds",
        "val_loss": "validation/loss",
        "accuracy": "validation/accuracy",
        "uar": "validation/uar",
        "macro_f1": "validation/macro_f1",
    },
    "checkpoint": {"stall": "checkpoint/stall"},
}
"""Event -> its field -> the curve, in units of `EpochRecord` or seconds. Trackers are not told of a checkpoint's:
one may be saved again where a run goes on, and its point would come twice.
"""


@dataclass(frozen=True)
class Point:
    """Curve -> value at a step of the run, and when that was, in seconds since 1970."""

    step: int
    time: float
    values: dict[str, float]


class Tracker(Protocol):
    """Somewhere that curves go; one thread calls it. Any exception ends the tracker, and never the run."""

    def log(self, points: Sequence[Point]) -> None:
        """Take points, in the order of their steps; none is given twice."""

    def close(self, finished: bool) -> None:
        """The run is over, or only stopped for now."""


def curves(kind: str, data: Mapping[str, Any]) -> dict[str, float]:
    """Curve -> value, of an event; empty for one that has none."""
    named = CURVES.get(kind, {})
    return {curve: data[name] for name, curve in named.items() if data.get(name) is not None}


def check(config: Config) -> None:
    """Find out whether the trackers of `config` can be used, and note what they shall know the run by.

    Raises:
        UserError: one is not installed, not logged in, or does not answer.
    """
    for name in config.tracking:
        try:
            module = import_module(f"parrot_dist.reporting.{name}_tracker")
        except ImportError as error:
            raise UserError(f"tracking: {name} is not installed; pip install 'parrot-dist[{name}]'") from error
        module.check()
    place = storage.join(config.run_url, IDENTITY)
    if config.tracking and not storage.exists(place):
        storage.write_bytes(place, uuid.uuid4().hex[:16].encode())


class Tracking:
    """Gathers the curves of a run from its events, and gives them to the trackers in a thread of its own.

    Args:
        config: of a run that `check` was called for.
        warn: is told, once for each, of a tracker that fails and is left out from there on.
    """

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self._config, self._warn = config, warn
        self._names = ("tensorboard", *config.tracking)
        self._points: list[Point] = []
        self._vouched = 0
        self._trackers: dict[str, Tracker] = {}
        self._pool = ThreadPoolExecutor(1)
        for name in self._names:
            self._pool.submit(self._open, name)

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take an event of the run; returns at once."""
        if kind == "start":  # of new workers too: what the lost ones did after the checkpoint comes again
            self._points = [point for point in self._points if point.step <= data["step"]]
        elif kind == "checkpoint":
            self._vouched = data["step"]
            self._send()
        elif values := curves(kind, data):
            step = data["step"] if kind == "epoch" else (data["epoch"] - 1) * data["steps"] + data["step"]
            self._points.append(Point(step, time.time(), values))
            if step <= self._vouched:  # an epoch's record may come after the checkpoint at its end
                self._send()

    def close(self, finished: bool) -> None:
        """Return when the trackers have been told everything."""
        self._send()
        for name in self._names:
            self._pool.submit(self._call, name, lambda tracker: tracker.close(finished))
        self._pool.shutdown()

    def _send(self) -> None:
        points = [point for point in self._points if point.step <= self._vouched]
        self._points = self._points[len(points) :]
        for name in self._names if points else ():
            self._pool.submit(self._call, name, lambda tracker: tracker.log(points))

    def _open(self, name: str) -> None:
        try:
            self._trackers[name] = import_module(f"parrot_dist.reporting.{name}_tracker").open_tracker(self._config)
        except Exception as error:
            self._leave_out(name, error)

    def _call(self, name: str, what: Callable[[Tracker], None]) -> None:
        if name not in self._trackers:
            return
        try:
            what(self._trackers[name])
        except Exception as error:  # of any library and any network: training is worth more than its curves
            del self._trackers[name]
            self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        reason = without_userinfo((str(error).splitlines() or [""])[0])
        self._warn(f"tracking: {name} is left out from here on ({type(error).__name__}: {reason})")
