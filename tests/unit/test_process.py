"""Child processes: one has ended when its block has, however that was left."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from parrot_dist.local.process import child, interrupted_by_sigterm
from tests.waiting import wait_until

# Takes longer to end than `subprocess` waits after Ctrl-C.
SLOW = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(2)
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(600)
"""


def leave_by(error: type[BaseException], folder: Path) -> None:
    with child([sys.executable, "-c", SLOW, str(folder)], os.environ, folder / "log"):
        wait_until((folder / "started").exists)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_child_has_ended_when_its_block_has(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        leave_by(error, tmp_path)
    assert (tmp_path / "ended").exists()


def terminate(ours: bool) -> None:
    with interrupted_by_sigterm():
        if not ours:
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("ours", [True, False])
def test_sigterm_has_its_exit_code_whoever_handles_it(ours: bool) -> None:
    """Ray puts a handler of its own in the place of anybody's, and exits with the bare number."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        terminate(ours)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
