"""Servers as child processes: none outlives its parent, and ending one ends only what it started.

`python -m parrot_dist.local.process COMMAND ...` runs COMMAND until it ends by itself or standard input closes. The
parent holds the other end of that pipe, so the command ends with it even if the parent is killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from parrot_dist.errors import UserError

POLL_S = 0.1
GRACE_S = 20.0


@contextmanager
def child(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in a session of its own, its output in `log`; on exit it has ended, and its process group too."""
    guard = [sys.executable, "-m", "parrot_dist.local.process", *command]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=output, stderr=output, env=env, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:  # here, since after Ctrl-C `Popen` itself waits for a quarter of a second only
            process.communicate()  # closes its standard input and waits


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    """Wait until `ready()`.

    Raises:
        UserError: `process` ended before, or the time is over; quotes the end of `log`.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            what = "ended" if process.poll() is not None else f"was not ready after {timeout_s:.0f} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            raise UserError(f"the local server {what}; the end of {log}:\n{tail}")
        time.sleep(POLL_S)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit in this process, so that it takes the same orderly way out as Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, with its own exit code; for a driver of Ray, which turns every other
    exception out of a signal handler into exit code 1.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
        sys.exit(128 + received[0])
    except SystemExit as end:  # with the number of the signal alone, from a handler that Ray puts in this one's place
        if end.code != signal.SIGTERM:
            raise
        sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    """Run the command given as arguments until it ends or standard input closes; its exit code."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    while command.poll() is None and not select.select([sys.stdin], [], [], POLL_S)[0]:
        pass
    command.terminate()
    with suppress(subprocess.TimeoutExpired):
        command.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    return command.wait()


if __name__ == "__main__":
    sys.exit(main())
