"""Checkpoints: complete or not there, whatever happened while they were written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from parrot_dist import storage
from parrot_dist.errors import UserError
from parrot_dist.training import checkpoint, snapshot
from parrot_dist.training.checkpoint import Manifest, Writer
from parrot_dist.training.lease import hold

PARTS = {"model.safetensors": b"weights", "state.pt": b"state"}


def manifest(step: int, score: float | None = None) -> Manifest:
    return Manifest(
        step=step,
        epoch=step,
        epoch_step=0,
        score=score,
        finished=False,
        classes=["a", "b"],
        encoders={"mamba": {"source": "ssam:x", "digest": "0"}},
        index_digest="1",
    )


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def steps(run: str) -> list[int]:
    return [found.manifest.step for found in checkpoint.find_all(run)]


def test_what_is_saved_is_found_and_read_back(run: str) -> None:
    url = checkpoint.save(run, manifest(3, 0.5), PARTS)
    found = checkpoint.newest(run)
    assert found is not None
    assert (found.url, found.manifest.step, found.manifest.score) == (url, 3, 0.5)
    assert {name: checkpoint.read_part(found, name) for name in PARTS} == PARTS


@contextmanager
def killed_after(writes: int) -> Iterator[None]:
    """A kill once so many objects have been written."""
    write, left = storage.write_bytes, iter(range(writes))

    def kill(url: str, data: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(url, data)

    with patch.object(storage, "write_bytes", kill), pytest.raises(KeyboardInterrupt):
        yield


def test_a_kill_at_any_moment_of_a_save_leaves_the_one_before(run: str) -> None:
    checkpoint.save(run, manifest(1), PARTS)
    for moment in range(len(PARTS) + 1):
        with killed_after(moment):
            checkpoint.save(run, manifest(2), PARTS)
        assert steps(run) == [1]


def test_a_kill_while_a_step_is_saved_again_leaves_what_was_saved_first(run: str) -> None:
    """As after a stop before the validation: the run goes on by validating, and saves the same step with its score."""
    first = checkpoint.save(run, manifest(2), PARTS)
    other = {name: b"other!!"[: len(data)] for name, data in PARTS.items()}
    for moment in range(len(PARTS) + 1):
        with killed_after(moment):
            checkpoint.save(run, manifest(2, 0.5), other)
        (found,) = checkpoint.find_all(run)
        assert (found.url, found.manifest.score) == (first, None)
        assert {name: checkpoint.read_part(found, name) for name in PARTS} == PARTS
    checkpoint.save(run, manifest(2, 0.5), other)
    found = checkpoint.newest(run)
    assert found is not None
    assert found.manifest.score == 0.5
    assert {name: checkpoint.read_part(found, name) for name in PARTS} == other
    checkpoint.retain(run, 1, 2)
    assert checkpoint.find_all(run) == [found]


def test_a_kill_while_a_part_is_added_leaves_the_checkpoint(run: str) -> None:
    url = checkpoint.save(run, manifest(1), PARTS)
    for moment in range(2):
        with killed_after(moment):
            checkpoint.add_part(url, "more", b"parts")
        (found,) = checkpoint.find_all(run)
        assert found.manifest.files.keys() == PARTS.keys()
    checkpoint.add_part(url, "more", b"parts")
    (found,) = checkpoint.find_all(run)
    added = PARTS | {"more": b"parts"}
    assert {name: checkpoint.read_part(found, name) for name in found.manifest.files} == added


def test_a_short_part_is_torn_and_a_changed_one_damaged(run: str) -> None:
    url = checkpoint.save(run, manifest(2), PARTS)
    storage.write_bytes(storage.join(url, "state.pt"), b"other")
    found = checkpoint.locate(url)
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        checkpoint.read_part(found, "state.pt")
    storage.write_bytes(storage.join(url, "state.pt"), b"")
    assert steps(run) == []


def spoil(url: str, part: str) -> None:
    """Change a part of a checkpoint, but not its size."""
    data = storage.read_bytes(storage.join(url, part))
    storage.write_bytes(storage.join(url, part), data[::-1])


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_gone_on_from(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoint.newest_intact(run) is None
    for step in (1, 2, 3):
        checkpoint.save(run, manifest(step), PARTS)
    newest = checkpoint.newest(run)
    spoil(newest.url, "state.pt")
    assert checkpoint.newest_intact(run).manifest.step == 2
    assert f"{newest.url}: state.pt is damaged" in caplog.text
    for found in checkpoint.find_all(run)[:-1]:
        spoil(found.url, "model.safetensors")
    with pytest.raises(UserError, match=r"step-00000003: state\.pt is damaged"):
        checkpoint.newest_intact(run)


def test_a_store_that_refuses_access_is_no_damage(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> bytes:
        raise UserError("access refused")

    checkpoint.save(run, manifest(1), PARTS)
    monkeypatch.setattr(checkpoint, "read_part", lambda found, name: refuse(name))
    with pytest.raises(UserError, match="access refused"):
        checkpoint.newest_intact(run)


def test_what_is_saved_again_takes_the_place_of_a_damaged_one_of_its_step(run: str) -> None:
    checkpoint.save(run, manifest(1, 0.1), PARTS)
    spoil(checkpoint.save(run, manifest(2, 0.2), PARTS), "state.pt")
    again = checkpoint.save(run, manifest(2, 0.2), PARTS)
    assert checkpoint.best(run).url == checkpoint.locate(run).url == again
    for _ in range(2):
        checkpoint.retain(run, 2, 2)
        assert [found.url for found in checkpoint.find_all(run)][1:] == [again]
        assert steps(run) == [1, 2]
        assert checkpoint.newest_intact(run).url == again
        spoil(again, "state.pt")  # now the other one is not there any more
        assert checkpoint.newest_intact(run).manifest.step == 1
        assert checkpoint.save(run, manifest(2, 0.2), PARTS) == again


def test_what_one_listing_has_as_torn_and_the_next_as_whole_is_kept(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a file system answers for a moment with less than it holds, or a part is only now to be seen."""
    for step in (1, 2):
        checkpoint.save(run, manifest(step), PARTS)
    listings = []

    def list_files(url: str) -> dict[str, int]:
        listings.append(url)
        whole = list_whole(url)
        return whole if len(listings) > 1 else {name: whole[name] for name in whole if "step-00000001" not in name}

    list_whole = storage.list_files
    monkeypatch.setattr(storage, "list_files", list_files)
    checkpoint.retain(run, 2, 2)
    monkeypatch.undo()
    assert steps(run) == [1, 2]


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(run: str) -> None:
    for step in (1, 9):
        checkpoint.save(run, manifest(step, step / 10), PARTS)
    spoil(checkpoint.newest(run).url, "state.pt")
    writer = Writer(run, keep=1)
    for step in (2, 3):
        writer.save(manifest(step), lambda: PARTS, time.perf_counter())
        writer.wait()
        assert steps(run) == [1, step]


@pytest.mark.parametrize("until", range(len(PARTS) + 3))
def test_a_writer_whose_run_was_taken_over_changes_nothing_any_more(run: str, until: int) -> None:
    """Its lease is lost after `until` looks: of parts, of the manifest, and before others are deleted."""
    with hold(run, lambda text: None) as lease:
        looks = 0

        def fence() -> None:
            nonlocal looks
            if looks == until:
                storage.write_bytes(storage.join(run, "driver", "00000001.json"), b"{}")
            looks += 1
            lease.claim.check()

        for step in (1, 2):
            checkpoint.save(run, manifest(step), PARTS)
        writer = Writer(run, keep=2, fence=fence)
        writer.save(manifest(3), lambda: PARTS, time.perf_counter())
        with pytest.raises(UserError, match="is being trained by"):
            writer.wait()
        assert steps(run) == ([1, 2, 3] if until == len(PARTS) + 2 else [1, 2])
        with pytest.raises(UserError, match="is being trained by"):
            lease.claim.check()


def test_what_is_being_saved_is_awaited_for_a_while(run: str) -> None:
    go_on = threading.Event()

    def fence() -> None:
        assert go_on.wait(20)

    writer = Writer(run, keep=2, fence=fence)
    writer.settle()
    writer.save(manifest(1), lambda: PARTS, time.perf_counter())
    writer.settle(0.01)
    assert steps(run) == []
    go_on.set()
    writer.settle()
    assert steps(run) == [1]


def test_training_goes_on_while_a_checkpoint_is_made_and_waits_for_the_one_before(run: str) -> None:
    go_on, stalls = threading.Event(), []
    writer = Writer(run, 2, lambda step, url, stall: stalls.append(stall))

    def dump() -> dict[str, bytes]:
        assert go_on.wait(20)
        return PARTS

    writer.save(manifest(1), dump, time.perf_counter())
    assert steps(run) == []
    go_on.set()
    writer.save(manifest(2), dump, began=time.perf_counter() - 1000)
    assert steps(run)[0] == 1
    writer.wait()
    assert stalls[0] < 1000 <= stalls[1]


def test_what_fails_while_a_checkpoint_is_made_is_not_silent(run: str) -> None:
    writer = Writer(run, keep=2)
    writer.save(manifest(1), lambda: {"state.pt": bytes(1 // 0)}, time.perf_counter())
    with pytest.raises(ZeroDivisionError):
        writer.wait()


def test_the_best_is_the_earliest_of_equals(run: str) -> None:
    for step, score in ((1, 0.3), (2, 0.7), (3, None), (4, 0.7), (5, 0.1)):
        checkpoint.save(run, manifest(step, score), PARTS)
    best = checkpoint.best(run)
    assert best is not None
    assert best.manifest.step == 2
    assert checkpoint.locate(run).url == best.url


def test_the_newest_and_the_best_are_kept_and_what_is_torn_goes(run: str) -> None:
    told: list[int] = []
    writer = Writer(run, 2, lambda step, url, stall: told.append(step) if checkpoint.locate(url) else None)
    storage.write_bytes(storage.join(run, checkpoint.FOLDER, "step-00000000", "state.pt"), b"torn")
    for step, score in ((1, 0.3), (2, 0.9), (3, 0.2), (4, None), (5, 0.4)):
        writer.save(manifest(step, score), lambda: PARTS, time.perf_counter())
    writer.wait()
    assert steps(run) == [2, 4, 5]
    assert told == [1, 2, 3, 4, 5]
    names = {name.split("/")[0] for name in storage.list_files(storage.join(run, checkpoint.FOLDER))}
    assert len(names) == 3


def test_a_failed_upload_is_not_silent(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(run, keep=2)
    monkeypatch.setattr(storage, "write_bytes", lambda *_: 1 / 0)
    writer.save(manifest(1), lambda: PARTS, time.perf_counter())
    with pytest.raises(ZeroDivisionError):
        writer.wait()


def test_no_checkpoint_at_all(run: str) -> None:
    assert checkpoint.newest(run) is None
    with pytest.raises(UserError, match="neither a complete checkpoint nor a run"):
        checkpoint.locate(run)


@pytest.mark.parametrize("state", [{"history": [], "unknown": 1}, {"step": 1}, {"history": [{"epoch": 1}]}])
def test_a_state_of_another_version_is_said_to_be_one(
    run: str, monkeypatch: pytest.MonkeyPatch, state: dict[str, object]
) -> None:
    found = checkpoint.locate(checkpoint.save(run, manifest(1), PARTS))
    monkeypatch.setattr(snapshot, "read_state", lambda _: {"state": state})
    with pytest.raises(UserError, match="saved by another version of this program"):
        snapshot.read_history(found)
