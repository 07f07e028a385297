"""What passes between the driver and the workers while a run is on its way: events up, the wish to stop down."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, RayError

from parrot_dist.reporting.view import Kind
from parrot_dist.training.pulse import Beat, Heart, Pulse, Suspect, feel, suspects

ASK_SECONDS = 0.5  # between two questions whether the run shall stop


@dataclass(frozen=True)
class Event:
    """Something the person at the driver should see, with what `Kind` says of it.

    An "end" of a worker holds only its rank, how its part ended (finished, stopped or failed) and why.
    """

    kind: Kind
    data: dict[str, Any]


class Listener(Protocol):
    """Who is told of the run by the rank that computes, and may wish it to stop."""

    def put(self, kind: Kind, **data: Any) -> None:
        """Take an event."""

    def stop_wanted(self) -> bool:
        """Whether the run shall save a checkpoint and leave."""

    def notice(self) -> str | None:
        """What is known of machines of the run that will be taken away soon, if anything; all ranks ask together."""

    def at(self, step: int | None) -> None:
        """Take note that this rank gets on, and is at this step of the run; None: at work that takes what it takes."""


class Monitor:
    """An actor that the driver owns; it ends with the driver, and so does the run."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = False
        self._pulses: dict[int, Pulse] = {}
        self._heard = time.monotonic()

    def put(self, event: Event) -> None:
        """Take an event of a worker."""
        self._heard = time.monotonic()
        self._events.append(event)

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and leave."""
        self._stop = True

    def stop_wanted(self) -> bool:
        """Whether somebody has asked for that."""
        return self._stop

    def beat(self, beat: Beat) -> None:
        """Take a sign of life of a rank."""
        self._heard = time.monotonic()
        self._pulses[beat.rank] = feel(self._pulses.get(beat.rank), beat, self._heard)

    def forget(self, rank: int) -> None:
        """The rank has left, or has come anew."""
        self._pulses.pop(rank, None)

    def silence(self) -> float:
        """Seconds since anything was heard of any rank."""
        return time.monotonic() - self._heard

    def suspects(self, seconds: float) -> list[Suspect]:
        """The ranks that seem to have hung for so long."""
        return suspects(self._pulses.values(), time.monotonic(), seconds)


class Reporter:
    """A worker's end of the monitor; training never waits for it."""

    def __init__(self, monitor: Any, heart: Heart) -> None:
        self._monitor, self._heart = monitor, heart
        self._stop = False
        self._lost: RayError | None = None
        self._listener: threading.Thread | None = None

    def put(self, kind: Kind, **data: Any) -> None:
        """Send an event."""
        self._monitor.put.remote(Event(kind, data))

    def put_and_wait(self, kind: Kind, **data: Any) -> None:
        """Send an event and return once it has arrived: for the last one of a process."""
        ray.get(self._monitor.put.remote(Event(kind, data)))

    def stop_wanted(self) -> bool:
        """Whether the driver has wished so, but for the last `ASK_SECONDS`.

        Raises:
            RayError: the monitor is lost.
        """
        if self._listener is None:  # the first rank alone is asked for it
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        if self._lost is not None:
            raise self._lost
        return self._stop

    def notice(self) -> str | None:
        """See `Listener`. On spot machines, and where Kubernetes moves a pod, Ray drains a node first."""
        info = ray.train.get_preemption_info()
        if info is None:
            return None
        when = "soon"
        if info.deadline_ms is not None:
            when = f"at {datetime.fromtimestamp(info.deadline_ms / 1000, UTC):%H:%M:%S} UTC"
        ranks = info.preempted_ranks
        who = "workers {} lose their nodes" if len(ranks) > 1 else "worker {} loses its node"
        return f"{who.format(', '.join(map(str, ranks)))} {when}"

    def _listen(self) -> None:
        try:
            while not self._stop:
                with suppress(ActorUnavailableError):
                    self._stop = ray.get(self._monitor.stop_wanted.remote())
                time.sleep(ASK_SECONDS)
        except RayError as error:
            self._lost = error

    def at(self, step: int | None) -> None:
        """Let the next beat say so."""
        self._heart.at(step)


class LogToReporter(logging.Handler):
    """Brings what a worker's modules log to the person at the driver, who does not see Ray's log files."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record on."""
        self._reporter.put("warning" if record.levelno >= logging.WARNING else "message", text=record.getMessage())
