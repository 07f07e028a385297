"""One driver of a run at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import pytest

from parrot_dist import storage
from parrot_dist.errors import UserError
from parrot_dist.training import lease
from parrot_dist.training.lease import FOLDER, Claim, Holder, Lease, hold, this_machine
from tests.waiting import wait_until

LATER = Holder("later", "node-9", 7, "2026-01-02 03:04:05 UTC", 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)  # a living driver is not taken for dead: `STALE_S` stays long


@pytest.fixture
def soon_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait for a death."""
    monkeypatch.setattr(lease, "STALE_S", 1.0)


def silent(text: str) -> None:
    pass


def leave_behind(run: str, host: str, process: int, machine: str = "") -> None:
    """The lease of a driver that has died without a word."""
    holder = Holder("gone", host, process, "2026-01-01 00:00:00 UTC", 3, machine)
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
    leave_behind(str(tmp_path), socket.gethostname(), process.pid, this_machine())
    with hold(str(tmp_path), lambda text: pytest.fail(text)):
        assert list(storage.list_files(str(tmp_path))) == [f"{FOLDER}/00000005.json"]


@pytest.mark.usefixtures("soon_dead")
def test_a_driver_that_died_elsewhere_is_replaced_once_it_has_been_silent_for_long(tmp_path: Path) -> None:
    leave_behind(str(tmp_path), "node-1", 1)
    told: list[str] = []
    with hold(str(tmp_path), told.append) as held:
        assert not held.lost
    assert told == ["waiting to see whether the driver on node-1, started 2026-01-01 00:00:00 UTC, has died"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("soon_dead")
def test_a_driver_on_another_machine_of_this_name_is_not_dead_because_its_process_is_not_here(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leave_behind(str(tmp_path), socket.gethostname(), process.pid, "another start, or another container")
    told: list[str] = []
    with hold(str(tmp_path), told.append):
        assert len(told) == 1
    assert len(this_machine()) > 30


@pytest.mark.usefixtures("soon_dead")
def test_files_of_others_and_damaged_ones_neither_end_the_renewal_nor_hide_that_a_run_was_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = storage.join(str(tmp_path), FOLDER)
    with hold(str(tmp_path), silent) as held:
        storage.write_bytes(storage.join(place, "notes.txt"), b"mine")
        held.renew(1)
        held.claim.check()
        storage.write_bytes(storage.join(place, "00000001.json"), b"{torn")
        wait_until(lambda: held.lost is not None, 20)
    assert "is being trained by process 0 on an unknown host" in str(held.lost)
    told: list[str] = []
    with hold(str(tmp_path), told.append) as held:  # what is damaged does not change, and so counts as dead
        held.claim.check()
    assert told == ["waiting to see whether the driver on an unknown host, started at an unknown time, has died"]


def test_a_renewal_that_fails_is_tried_again_loudly_and_for_long_is_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renew, faults = Lease.renew, [ValueError("a strange answer")]

    def failing(self: Lease, beats: int) -> None:
        if faults:
            raise faults.pop()
        renew(self, beats)

    monkeypatch.setattr(Lease, "renew", failing)
    with hold(str(tmp_path), silent) as held:
        wait_until(lambda: b'"beats": 2' in storage.read_bytes(str(tmp_path / FOLDER / "00000000.json")), 20)
        assert "cannot be renewed: ValueError('a strange answer')" in caplog.text
        assert held.lost is None
        monkeypatch.setattr(lease, "STALE_S", 1.0)
        faults += [TypeError("no answer")] * 1000
        wait_until(lambda: held.lost is not None, 20)
    assert "its lease cannot be renewed any more: TypeError('no answer')" in str(held.lost)


def test_a_claim_is_void_once_another_driver_came_or_the_number_came_again(tmp_path: Path) -> None:
    with hold(str(tmp_path), silent) as held:
        held.claim.check()
        again = Claim(str(tmp_path), 0, "of an earlier driver")
        with pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on"):
            again.check()
    with pytest.raises(UserError, match=r"00000000\.json: this driver's lease is gone"):
        held.claim.check()


def test_a_driver_that_was_taken_for_dead_hears_of_it(tmp_path: Path) -> None:
    storage.write_bytes(storage.join(str(tmp_path), FOLDER, "00000004.json"), LATER.dump())
    held = Lease(str(tmp_path), 4, LATER)
    held.renew(1)
    assert held.lost is None
    storage.write_bytes(storage.join(str(tmp_path), FOLDER, "00000005.json"), LATER.dump())
    held.renew(2)
    assert "is being trained by process 7 on node-9, started 2026-01-02 03:04:05 UTC" in str(held.lost)


@pytest.mark.parametrize("still_there", [True, False])
def test_a_driver_that_wakes_after_others_came_and_went_does_not_take_the_run_back(
    tmp_path: Path, still_there: bool
) -> None:
    run = str(tmp_path)
    place = storage.join(run, FOLDER, "00000000.json")
    holder = replace(LATER, token="first")
    storage.write_bytes(place, holder.dump())
    woken = Lease(run, 0, holder)
    storage.delete(place)  # another took number 1, deleted this, and has finished
    if still_there:  # and a third has the number now
        storage.write_bytes(place, LATER.dump())
    woken.renew(1)
    assert woken.lost is not None
    assert (f"{run} is being trained by" if still_there else f"{place}: this driver's lease is gone") in woken.lost
    assert storage.find_bytes(place) == (LATER.dump() if still_there else None)


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


def test_a_driver_that_was_taken_for_dead_leaves_the_lease_of_the_one_that_has_its_number_now(tmp_path: Path) -> None:
    place = storage.join(str(tmp_path), FOLDER, "00000000.json")
    storage.write_bytes(place, LATER.dump())
    Lease(str(tmp_path), 0, replace(LATER, token="first")).release()
    assert storage.find_bytes(place) == LATER.dump()
    Lease(str(tmp_path), 0, LATER).release()
    assert storage.find_bytes(place) is None


def test_a_look_while_another_driver_takes_over_finds_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tmp_path)
    held = Lease(run, 0, replace(LATER, token="first"))
    storage.write_bytes(storage.join(run, FOLDER, "00000001.json"), LATER.dump())
    numbers = iter([0, 1])  # the first is deleted before it is read
    monkeypatch.setattr(lease, "_newest", lambda _: next(numbers))
    assert "is being trained by process 7 on node-9" in str(held.claim.loss())
