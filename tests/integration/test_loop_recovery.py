"""The loop on real processes: what was stopped or killed goes on to the same bits (contract 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting.view import JsonLines
from parrot_dist.training import checkpoint, loop
from parrot_dist.training.inference import Place
from parrot_dist.training.model import MODEL_PART, REFERENCE_PART, load_checkpoint
from parrot_dist.training.prepare import prepare
from parrot_dist.training.rank import train_rank
from parrot_dist.training.reference import embed_reference, fit_and_dump
from parrot_dist.training.task import open_task
from tests.jobs import Material, drop_reference, short_job
from tests.ranks import Listener, distance, losses, train, trained_parameters
from tests.waiting import wait_until

STEPS = 6  # of an epoch; after them two batches are validated, and two give reference rows


@pytest.mark.parametrize(("stop_at", "step"), [(2, 2), (STEPS + 1, STEPS), (STEPS + 3, STEPS), (STEPS + 5, STEPS + 1)])
def test_a_run_stopped_in_a_step_in_validation_or_after_it_goes_on_bit_for_bit(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]], stop_at: int, step: int
) -> None:
    settings = short_job(short, tmp_path)
    how, events = train(settings, 1, tmp_path, stop_at)
    assert how == "stopped"
    found = checkpoint.newest(settings.run_url)
    epochs = [event["epoch"] for kind, event in events if kind == "epoch"]
    assert (found.manifest.epoch, found.manifest.epoch_step) == (len(epochs), step - STEPS * len(epochs))
    how, events = train(settings, 1, tmp_path)
    assert how == "finished"
    kind, start = events[0]
    assert (kind, start["step"], start["workers"]) == ("start", step, 1)
    best, as_whole = checkpoint.best(settings.run_url), checkpoint.best(undisturbed[0].run_url)
    assert (best.manifest.step, best.manifest.score) == (as_whole.manifest.step, as_whole.manifest.score)
    assert best.manifest.files[REFERENCE_PART] == as_whole.manifest.files[REFERENCE_PART]
    resumed, whole = trained_parameters(settings), trained_parameters(undisturbed[0])
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert losses(events)[-1] == undisturbed[1][-1]
    assert all(REFERENCE_PART in one.manifest.files for one in checkpoint.find_all(settings.run_url))


def test_a_run_goes_on_bit_for_bit_on_three_ranks(short: Material, tmp_path: Path) -> None:
    whole, parts = (
        short_job(short, tmp_path / "whole"),
        short_job(short, tmp_path / "parts", "checkpoint.every_steps=1"),
    )
    assert train(whole, 3, tmp_path)[0] == "finished"
    assert train(parts, 3, tmp_path, stop_at=4)[0] == "stopped"
    assert train(parts, 3, tmp_path)[0] == "finished"
    ours, theirs = trained_parameters(parts), trained_parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_reference_rows_within_an_epoch_are_those_of_the_parameters_beside_them(
    short: Material, tmp_path: Path
) -> None:
    settings = short_job(short, tmp_path, "data.keep_frozen=false", "checkpoint.every_steps=2")
    assert train(settings, 2, tmp_path, stop_at=5)[0] == "stopped"
    task, found = open_task(settings), checkpoint.find_all(settings.run_url)
    assert [one.manifest.step for one in found] == [2, 3]
    for one in found:
        _, model, kept = load_checkpoint(one)
        rows = embed_reference(task, dict.fromkeys(model.encoders, task.corpus), model, Place(), lambda: False)
        assert kept is not None
        assert rows is not None
        for name, tensor in load(fit_and_dump(rows, settings.fusion)).items():
            torch.testing.assert_close(kept.to_tensors()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_stop_between_two_epochs_keeps_what_the_first_one_saved(short: Material, tmp_path: Path) -> None:
    settings = short_job(short, tmp_path, "optim.epochs=3")
    assert train(settings, 1, tmp_path, stop_at=STEPS + 4)[0] == "stopped"
    found = checkpoint.newest(settings.run_url)
    assert found is not None
    assert (found.manifest.epoch, found.manifest.epoch_step) == (1, 0)
    assert found.manifest.score is not None
    assert REFERENCE_PART in found.manifest.files


@pytest.mark.parametrize("stop_at", [None, STEPS + 4, STEPS + 13])  # its end; the ends of an epoch and of a step
def test_reference_rows_that_a_kill_kept_from_a_checkpoint_are_added_when_the_run_goes_on(
    short: Material, tmp_path: Path, stop_at: int | None
) -> None:
    settings = short_job(short, tmp_path, "checkpoint.every_steps=2")
    train(settings, 1, tmp_path, stop_at)
    whole = checkpoint.newest(settings.run_url)
    kept = checkpoint.read_part(whole, REFERENCE_PART)
    drop_reference(Path(whole.url))
    assert prepare(settings, JsonLines())
    # Asked twice while the rows are computed, and then before the next step.
    assert train(settings, 2, tmp_path, stop_at=2 if stop_at else None)[0] == ("stopped" if stop_at else "finished")
    found = checkpoint.newest(settings.run_url)
    assert found.manifest.step == whole.manifest.step
    theirs, ours = (load(part) for part in (kept, checkpoint.read_part(found, REFERENCE_PART)))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
    assert prepare(settings, JsonLines()) == bool(stop_at)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_same_bits(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    settings = short_job(short, tmp_path, "checkpoint.every_steps=2", "checkpoint.keep=1")
    assert train(settings, 1, tmp_path, stop_at=STEPS + 13)[0] == "stopped"
    newest = checkpoint.newest(settings.run_url)
    part = Path(newest.url, MODEL_PART)
    part.write_bytes(part.read_bytes()[::-1])
    how, events = train(settings, 1, tmp_path)
    assert how == "finished"
    assert (newest.manifest.step, events[0][1]["step"]) == (STEPS + 3, STEPS)
    ours, theirs = trained_parameters(settings), trained_parameters(undisturbed[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert checkpoint.newest_intact(settings.run_url) == checkpoint.newest(settings.run_url)


def test_ranks_leave_a_validation_together(short: Material, tmp_path: Path) -> None:
    settings = short_job(short, tmp_path, "optim.epochs=1")
    assert train(settings, 2, tmp_path, stop_at=STEPS)[0] == "stopped"
    assert checkpoint.newest(settings.run_url).manifest.epoch_step == STEPS


def test_a_run_goes_on_with_another_number_of_workers(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    settings = short_job(short, tmp_path)
    assert train(settings, 2, tmp_path, stop_at=3)[0] == "stopped"
    assert train(settings, 1, tmp_path)[0] == "finished"
    assert distance(trained_parameters(settings), trained_parameters(undisturbed[0])) < 1e-3


@dataclass
class Doomed(Listener):
    """Is given notice from the third step on, and is killed before the fourth."""

    step: int | None = None
    told: bool = False

    def at(self, step: int | None) -> None:
        self.step = step

    def notice(self) -> str | None:
        self.told = self.step is not None and self.step >= 2
        return "worker 0 loses its node soon" if self.told else None

    def stop_wanted(self) -> bool:
        if self.told:
            raise RuntimeError("killed")
        return False


def test_what_it_takes_to_go_on_is_saved_when_machines_will_be_taken_away(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "NOTICE_SECONDS", -1.0)  # asked before every step
    settings, doomed = short_job(short, tmp_path), Doomed()
    with pytest.raises(RuntimeError, match="killed"):
        train_rank(settings, Place(), doomed, lambda record: None)
    warnings = [event["text"] for kind, event in doomed.events if kind == "warning"]
    assert [text.partition(";")[0] for text in warnings] == ["worker 0 loses its node soon"]
    wait_until(lambda: checkpoint.newest(settings.run_url) is not None, 20)
    newest = checkpoint.newest(settings.run_url)
    assert (newest.manifest.step, REFERENCE_PART in newest.manifest.files) == (2, False)
    how, events = train(settings, 1, tmp_path)
    assert (how, events[0][1]["step"]) == ("finished", 2)
    ours, theirs = trained_parameters(settings), trained_parameters(undisturbed[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(events) == undisturbed[1]


def test_a_rank_that_fails_where_an_epoch_is_saved_does_not_wait_for_the_others(
    short: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be waiting for it elsewhere; what is called after an epoch waits for all."""

    def fail(*_: object) -> None:
        raise UserError("access refused")

    monkeypatch.setattr(loop, "embed_reference", fail)
    listener, records = Listener(), []
    with pytest.raises(UserError, match="access refused"):
        train_rank(short_job(short, tmp_path), Place(), listener, records.append)
    assert records == []
    assert [event["epoch"] for kind, event in listener.events if kind == "epoch"] == [1]
