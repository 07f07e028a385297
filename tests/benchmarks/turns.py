"""Two runs that take turns, so that a machine whose speed changes is as fast for the one as for the other.

While one run takes its steps, all processes of the other are stopped (SIGSTOP). What a run does by the clock it still
does as often, all of it in its own turns: it is charged for up to twice as much of that as it has by itself.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.processes import family

STEPS = 3  # of a turn


class Gate:
    """What the first rank of a run waits at for its turn.

    Attributes:
        alone: nobody else waits for a turn any more.
    """

    def __init__(self, base: Path) -> None:
        """`base`: as the `Run` has it."""
        self._come, self._go = os.open(f"{base}.come", os.O_WRONLY), os.open(f"{base}.go", os.O_RDONLY)
        self.alone = False

    def wait(self) -> float:
        """Return at this run's turn, or at once if it is `alone`; the seconds that took."""
        began = time.perf_counter()
        if not self.alone:
            os.write(self._come, b"-")
            self.alone = os.read(self._go, 1) == b""
        return time.perf_counter() - began


class Run:
    """A run that computes only in its turns; at the end of a `with` block nothing of it is left."""

    def __init__(
        self, base: Path, start: Callable[[], subprocess.Popen[bytes]], others: Callable[[], list[int]]
    ) -> None:
        """Start it, and return when it waits for its first turn.

        Args:
            base: of the names of its gate's two pipes.
            start: starts its process, whose first rank goes through a `Gate` every `STEPS` steps.
            others: the processes that are its own besides that one and what that one has started.

        Raises:
            CalledProcessError: it has ended before.
        """
        for name in ("come", "go"):
            os.mkfifo(f"{base}.{name}")
        self._come = os.open(f"{base}.come", os.O_RDONLY | os.O_NONBLOCK)  # so that the gate opens it at once
        self._process, self._others = start(), others
        self._go = self._open_go(f"{base}.go")
        os.set_blocking(self._come, True)
        os.read(self._come, 1)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            send(self.processes(), signal.SIGKILL)
            self._process.wait()
        os.close(self._come)

    def turn(self) -> bool:
        """Let it take its steps; whether it has more of them."""
        processes = self.processes()
        send(processes, signal.SIGCONT)
        with suppress(BrokenPipeError):
            os.write(self._go, b"-")
        more = os.read(self._come, 1) != b""
        send(processes, signal.SIGSTOP)
        return more

    def end(self) -> None:
        """Let it go on to its end without turns.

        Raises:
            CalledProcessError: it has failed.
        """
        os.close(self._go)
        send(self.processes(), signal.SIGCONT)
        if code := self._process.wait():
            raise subprocess.CalledProcessError(code, self._process.args)

    def _open_go(self, name: str) -> int:
        while True:
            try:
                return os.open(name, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # the gate is not there yet
                    raise
            if self._process.poll() is not None:
                raise subprocess.CalledProcessError(self._process.returncode, self._process.args)
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """All that is there of it."""
        return [*family(self._process.pid), *self._others()]


def alternate(one: Run, other: Run) -> None:
    """Let both go on in turns until one of them has taken its steps, then both to their ends."""
    pair, more = (one, other), True
    for run in pair:
        send(run.processes(), signal.SIGSTOP)
    while more:
        for run in pair:
            more &= run.turn()
        pair = pair[::-1]  # neither always comes first
    for run in pair:
        run.end()


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
