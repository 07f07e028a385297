"""Signs of life of the ranks: which of them hangs, when a run does not get on."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

LONGEST_PAUSE_S = 5.0  # between two beats: cheap, and soon enough for a driver that wants to know who is at work

ANSWER_S = 1.0  # that a suspect has to answer in, while the driver hears nothing else; it has been silent for long


@dataclass(frozen=True)
class Beat:
    """A sign of life of a rank.

    Attributes:
        host: name of its machine.
        worker: handle of the actor that it runs in.
        moves: how often it has got on; 0 while it does not train, since loading and frozen work take as long as they
            take.
        step: the step of the run that it is at.
        where: the line of this package that it is at.
        waits: whether it waits there for other ranks.
    """

    rank: int
    host: str
    worker: Any
    moves: int
    step: int
    where: str
    waits: bool


@dataclass(frozen=True)
class Pulse:
    """The newest beat of a rank, and the times, on one clock in seconds, of that beat and of the newest move."""

    beat: Beat
    heard: float
    moved: float


@dataclass(frozen=True)
class Suspect:
    """A rank that seems to hang; `silent`: it does not even beat any more."""

    beat: Beat
    silent: bool

    def __str__(self) -> str:
        """For example "rank 1 on node-7 hangs at step 42 in parrot_dist.data.stream.fetch, line 81: no progress"."""
        what = "no sign of life" if self.silent else "no progress"
        return f"rank {self.beat.rank} on {self.beat.host} hangs at step {self.beat.step} in {self.beat.where}: {what}"


def feel(before: Pulse | None, beat: Beat, now: float) -> Pulse:
    """The pulse of a rank after a beat."""
    return Pulse(beat, now, before.moved if before is not None and before.beat.moves == beat.moves else now)


def suspects(pulses: Iterable[Pulse], now: float, seconds: float) -> list[Suspect]:
    """The ranks that keep the others waiting, when one has been silent or has not moved for `seconds`.

    All that stand still are named where all of them wait for each other, or none says so.
    """
    pulses = list(pulses)
    silent = [Suspect(pulse.beat, True) for pulse in pulses if now - pulse.heard > seconds]
    stuck = [Suspect(pulse.beat, False) for pulse in pulses if pulse.beat.moves and now - pulse.moved > seconds]
    return silent or [one for one in stuck if not one.beat.waits] or stuck


def standpoint(thread: int) -> tuple[str, bool]:
    """The innermost line of this package that a thread is at, and whether it waits there for other ranks."""
    frame, waits = sys._current_frames().get(thread), False
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        waits |= module.startswith("torch.distributed")
        if module.startswith("parrot_dist."):
            return f"{module}.{frame.f_code.co_name}, line {frame.f_lineno}", waits
        frame = frame.f_back
    return "its end", waits


class Heart:
    """Beats for a rank, whose training runs in the thread that makes this, until the end of the block."""

    def __init__(self, monitor: Any, rank: int, hang_seconds: float) -> None:
        self._monitor, self._rank = monitor, rank
        self._pause = min(hang_seconds / 4 or LONGEST_PAUSE_S, LONGEST_PAUSE_S)
        self._trainer = threading.get_ident()
        self._worker = ray.get_runtime_context().current_actor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._moves = self._step = 0

    def at(self, step: int | None) -> None:
        """The rank gets on, and is at this step of the run; None: it does not train for now."""
        self._moves, self._step = (0, self._step) if step is None else (self._moves + 1, step)

    def __enter__(self) -> Heart:
        self._monitor.forget.remote(self._rank)  # what this rank was before it was lost
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        ray.get(self._monitor.forget.remote(self._rank))

    def _run(self) -> None:
        host = socket.gethostname()
        while not self._over.wait(self._pause):
            where, waits = standpoint(self._trainer)
            beat = Beat(self._rank, host, self._worker, self._moves, self._step, where, waits)
            self._monitor.beat.remote(beat)


def hanging(found: list[Suspect]) -> list[Suspect]:
    """Those whose process is still there, and if it was silent does not answer either."""
    if not found:
        return []
    answers = {suspect.beat.worker.__ray_ready__.remote(): suspect for suspect in found}
    came, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S)
    return [suspect for answer, suspect in answers.items() if answer not in came or _stuck(suspect, answer)]


def _stuck(suspect: Suspect, answer: Any) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return False  # it is dead, which Ray Train sees by itself
    return not suspect.silent
