"""How a run is shown: as text for people, or as one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, Protocol

from rich.console import Console

from parrot_dist.reporting import history
from parrot_dist.reporting.progress import Progress

Kind = Literal["start", "fill", "step", "epoch", "checkpoint", "message", "warning", "end"]
"""What can happen to a run, and what is told of it:

start       run, workers, step (0: from the beginning), checkpoint (URL or None)
fill        branch, done, parts: of the work of frozen layers
step        epoch, step, steps, loss, rate, data_wait, marginal_error: within an epoch
epoch       the fields of `EpochRecord`
checkpoint  step, url: it is complete; stall: seconds that training stood still for it,
            what goes on in the background not included
message     text
warning     text that a person may want to act on
end         how (finished, stopped, lost or failed), why, newest, best (URLs or None)
"""

UNSAVED = "the beginning: nothing was saved yet"


class View(Protocol):
    """Shows what happens to a run."""

    def show(self, kind: Kind, **data: Any) -> None:
        """Show an event."""

    def close(self) -> None:
        """Leave the terminal as it was; a second call does nothing."""


class Text:
    """For people, on stdout (or `console`): a bar on a terminal, lines elsewhere; `quiet`: warnings and the end."""

    def __init__(self, epochs: int, quiet: bool = False, console: Console | None = None) -> None:
        self._epochs, self._quiet = epochs, quiet
        console = console or Console()
        self._progress = Progress(epochs, console)
        self._room = console.width if console.is_terminal else sys.maxsize  # a log keeps its lines whole

    def show(self, kind: Kind, **data: Any) -> None:
        """Show an event."""
        if self._quiet and kind not in ("warning", "end"):
            return
        if kind == "step":
            self._progress.update(**{name: data[name] for name in ("epoch", "step", "steps", "loss", "rate")})
        elif kind == "fill":
            self._progress.fill(**data)
        elif kind == "epoch":
            self._progress.message(history.line(history.EpochRecord(**data), self._epochs, self._room))
        elif text := in_words(kind, data):
            self._progress.message(text)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.close()


class JsonLines:
    """For programs, on stdout; all but what only moves a bar."""

    def show(self, kind: Kind, **data: Any) -> None:
        """Print an event as a line, its kind under "event"."""
        if kind not in ("step", "fill"):
            print(json.dumps({"event": kind, **data}), flush=True)

    def close(self) -> None:
        """Nothing to do."""


def in_words(kind: Kind, data: dict[str, Any]) -> str:
    """A start, a message, a warning or an end as a person reads it; empty for what needs no words."""
    if kind == "start":
        begun = f"going on from step {data['step']} ({data['checkpoint']})" if data["checkpoint"] else "starting"
        return f"{begun} on {data['workers']} workers"
    if kind != "end":
        return str(data.get("text", ""))
    newest, best = (data[name] or UNSAVED for name in ("newest", "best"))
    return {
        "finished": f"newest checkpoint: {newest}\nbest checkpoint:   {best}",
        "stopped": f"stopped; the same command goes on from {newest}",
        "lost": f"the run was lost: {data['why']}\nthe same command goes on from {newest}",
        "failed": "",  # the error itself says it, on stderr
    }[data["how"]]
