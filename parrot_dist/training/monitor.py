"""What passes between the driver and the workers while a run is on its way: events up, the wish to stop down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray

Kind = Literal["fill", "step", "epoch", "message", "end"]


@dataclass(frozen=True)
class Event:
    """Something the person at the driver should see.

    `kind` is "fill" (progress of computing frozen layers), "step" (progress within an epoch), "epoch" (an EpochRecord
    as JSON), "message" (a line of text) or "end" (how the run ended: finished, stopped or failed, and why).
    """

    kind: Kind
    data: dict[str, Any]


class Stopped(Exception):  # noqa: N818  not an error: somebody asked for it
    """The run was asked to stop, and has saved what it had."""


class Listener(Protocol):
    """Who is told of the run by the rank that computes, and may wish it to stop."""

    def put(self, kind: Kind, **data: Any) -> None:
        """Take an event."""

    def stop_wanted(self) -> bool:
        """Whether the run shall save a checkpoint and leave."""


class Monitor:
    """An actor that the driver owns; it ends with the driver, and so does the run."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = False

    def put(self, event: Event) -> bool:
        """Take an event of a worker; the answer says whether the run shall stop."""
        self._events.append(event)
        return self._stop

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and leave."""
        self._stop = True


class Reporter:
    """A worker's end of the monitor; training never waits for it."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._answer: Any = None
        self._stop = False

    def put(self, kind: Kind, **data: Any) -> None:
        """Send an event."""
        answer = self._monitor.put.remote(Event(kind, data))
        if self._answer is None:
            self._answer = answer

    def put_and_wait(self, kind: Kind, **data: Any) -> None:
        """Send an event and return once it has arrived: for the last one of a process."""
        ray.get(self._monitor.put.remote(Event(kind, data)))

    def stop_wanted(self) -> bool:
        """Whether an answer that has come says to stop."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._stop |= ray.get(self._answer)
            self._answer = None
        return self._stop
