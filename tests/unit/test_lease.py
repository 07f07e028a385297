"""One driver of a run at a time."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread

import pytest

from parrot_dist import storage
from parrot_dist.errors import UserError
from parrot_dist.training import lease
from parrot_dist.training.lease import FOLDER, Holder, Lease, hold

LATER = Holder("later", "node-9", 7, "2026-01-02 03:04:05 UTC", 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "STALE_S", 1.0)


def silent(text: str) -> None:
    pass


def leave_behind(run: str, host: str, process: int) -> None:
    """The lease of a driver that has died without a word."""
    holder = Holder("gone", host, process, "2026-01-01 00:00:00 UTC", 3)
    storage.write_bytes(storage.join(run, FOLDER, "00000004.json"), holder.dump())


def test_a_second_driver_is_refused_and_told_where_the_first_one_runs(tmp_path: Path) -> None:
    told: list[str] = []
    with hold(str(tmp_path), silent), pytest.raises(UserError) as refusal, hold(str(tmp_path), told.append):
        pass
    assert f"{tmp_path} is being trained by process " in str(refusal.value)
    assert f"on {socket.gethostname()}, started 20" in str(refusal.value)
    assert told[0].startswith("waiting to see whether the driver on")
    with hold(str(tmp_path), told.append):
        pass
    assert len(told) == 1
    assert not storage.list_files(str(tmp_path))


def test_a_driver_that_died_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leave_behind(str(tmp_path), socket.gethostname(), process.pid)
    with hold(str(tmp_path), lambda text: pytest.fail(text)):
        assert list(storage.list_files(str(tmp_path))) == [f"{FOLDER}/00000005.json"]


def test_a_driver_that_died_elsewhere_is_replaced_once_it_has_been_silent_for_long(tmp_path: Path) -> None:
    leave_behind(str(tmp_path), "node-1", 1)
    told: list[str] = []
    with hold(str(tmp_path), told.append) as held:
        assert not held.lost
    assert told == ["waiting to see whether the driver on node-1, started 2026-01-01 00:00:00 UTC, has died"]


def test_a_driver_that_was_taken_for_dead_hears_of_it(tmp_path: Path) -> None:
    held = Lease(str(tmp_path), 4, LATER)
    held.renew(1)
    assert held.lost is None
    storage.write_bytes(storage.join(str(tmp_path), FOLDER, "00000005.json"), LATER.dump())
    held.renew(2)
    assert "is being trained by process 7 on node-9, started 2026-01-02 03:04:05 UTC" in str(held.lost)


def test_what_another_driver_is_just_writing_is_no_lease(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / ".00000003.json.0123456789abcdef").write_text("{")
    with hold(str(tmp_path), silent):
        assert (tmp_path / "driver" / "00000000.json").exists()


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_of_several_drivers_at_once_one_wins(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue("bucket_url") if kind == "s3" else str(tmp_path)
    outcomes: list[str] = []
    start, end = Barrier(4), Barrier(4)

    def drive() -> None:
        start.wait()
        try:
            with hold(run, silent):
                outcomes.append("held")
                end.wait()
        except UserError:
            outcomes.append("refused")
            end.wait()

    threads = [Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]
