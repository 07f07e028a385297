"""How far a training run is: a live bar on a terminal, a few plain lines in a log file."""

from __future__ import annotations

import re

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from parrot_dist.reporting.console import plain

LINES_PER_EPOCH = 10
LINE = re.compile(r"epoch +(\d+)/(\d+)  step +(\d+)/(\d+)  loss +(?P<loss>\S+) +(?P<rate>\S+) utt/s")
"""What `Progress` writes where there is no terminal."""


class Progress:
    """The progress of a run of `epochs` epochs, shown on `console` (stdout unless given).

    The bar spans the run and not the epoch, so that the time left is the time until the person has a result.
    In a pipe or a job's log there is at most one line for each tenth of an epoch, counted in steps: the log
    of two equal runs has the same lines, however fast the machine was. The last tenth has none: the epoch's own
    line follows it.
    """

    def __init__(self, epochs: int, console: Console | None = None) -> None:
        self._epochs = epochs
        self._console = console or Console()
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._last = (0, 0)
        self._filled = ("", 0)

    def update(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        """Show that `step` of the `steps` steps of `epoch` are done; both count from 1.

        Args:
            epoch: the running epoch.
            step: steps done in this epoch.
            steps: steps that this epoch has.
            loss: running training loss, in nats.
            rate: utterances a second, all ranks together.
        """
        state = f"step {step:{len(str(steps))}d}/{steps}  loss {loss:6.4f}  {rate:7.1f} utt/s"
        heading = f"epoch {epoch:{len(str(self._epochs))}d}/{self._epochs}"
        if self._console.is_terminal:
            self._show(heading, state, completed=(epoch - 1) * steps + step, total=self._epochs * steps)
            return
        reached = (epoch, step * LINES_PER_EPOCH // steps)
        if 0 < reached[1] < LINES_PER_EPOCH and reached > self._last:
            self._last = reached
            self.message(f"{heading}  {state}")

    def fill(self, branch: str, done: int, parts: int) -> None:
        """Show that `done` of `parts` parts of the frozen work of `branch` are done, a line each tenth."""
        reached = (branch, done * LINES_PER_EPOCH // parts)
        if reached[1] and reached != self._filled:
            self._filled = reached
            self.message(f"frozen part of {branch}: {done}/{parts} parts")

    def message(self, text: str) -> None:
        """Print `text` as it is, above the bar if there is one."""
        plain(self._console, text)

    def close(self) -> None:
        """Take the bar away; a second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, heading: str, state: str, completed: int, total: int) -> None:
        if self._bar is None:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[state]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._console,
                transient=True,
                expand=True,
            )
            # A resumed run starts its bar where it stands: a jump from 0 would spoil the estimate of the time left.
            self._task = self._bar.add_task(heading, total=total, completed=completed, state=state)
            self._bar.start()
        self._bar.update(self._task, description=heading, total=total, completed=completed, state=state)


class Follower:
    """Shows the log of a job that runs elsewhere; on a terminal, the progress in it as a live bar again."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._progress: Progress | None = None

    def show(self, line: str) -> None:
        """Show one line of the log."""
        found = LINE.fullmatch(line)
        if found and self._console.is_terminal:
            epoch, epochs, step, steps = map(int, found.groups()[:4])
            self._progress = self._progress or Progress(epochs, self._console)
            self._progress.update(epoch, step, steps, float(found["loss"]), float(found["rate"]))
        else:
            plain(self._console, line)

    def close(self) -> None:
        """Take the bar away, if there is one."""
        if self._progress:
            self._progress.close()
