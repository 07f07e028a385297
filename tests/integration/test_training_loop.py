"""The loop on real processes: the same mathematics on any number of ranks, and exact recovery (contracts 5, 6, 11)."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from parrot_dist import configuration
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.reporting.view import JsonLines
from parrot_dist.training import checkpoint
from parrot_dist.training.evaluation import evaluate
from parrot_dist.training.inference import Place, Stopped
from parrot_dist.training.model import MODEL_PART, REFERENCE_PART, ParrotModel, load_checkpoint
from parrot_dist.training.prepare import prepare
from parrot_dist.training.rank import train_rank
from parrot_dist.training.reference import embed_reference, fit_and_dump
from parrot_dist.training.snapshot import read_state
from parrot_dist.training.task import open_task
from tests.corpus import CLASSES, write_corpus
from tests.jobs import drop_reference
from tests.ranks import Listener, distance, train, trained_parameters


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and two encoders that the runs of this module share."""
    folder = tmp_path_factory.mktemp("ground")
    write_corpus(str(folder / "corpus"), speakers=8, clips=9, seconds=0.4)
    write_random_encoders(str(folder / "encoders"))
    return folder


def job(ground: Path, output: Path, *words: str) -> Config:
    return configuration.load(
        None,
        [
            "name=run",
            f"output={output}",
            f"data.shards={ground / 'corpus'}",
            f"data.classes=[{','.join(CLASSES)}]",
            "data.split.folds=4",
            "data.window=5",
            "data.lanes=4",
            f"encoders.mamba.source=ssam:{ground / 'encoders/ssam'}",
            f"encoders.attention.source=hf:{ground / 'encoders/hubert'}",
            "encoders.mamba.unfreeze=last:1",
            "encoders.attention.unfreeze=last:1",
            "optim.batch_size=8",
            "optim.epochs=2",
            "optim.precision=float32",
            "fusion.reference_rows=16",
            *words,
        ],
    )


def losses(events: list[tuple[str, dict]]) -> list[float]:
    return [event["train_loss"] for kind, event in events if kind == "epoch"]


@pytest.fixture(scope="module")
def undisturbed(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = job(ground, folder)
    how, events = train(settings, 1, folder)
    assert how == "finished"
    return settings, losses(events)


@pytest.mark.parametrize(("world", "micro_batch"), [(2, 0), (3, 1)])
def test_the_world_size_changes_nothing_but_the_rounding(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]], world: int, micro_batch: int
) -> None:
    settings = job(ground, tmp_path, f"optim.micro_batch={micro_batch}")
    how, events = train(settings, world, tmp_path)
    assert how == "finished"
    assert losses(events) == pytest.approx(undisturbed[1], rel=1e-4)
    assert distance(trained_parameters(settings), trained_parameters(undisturbed[0])) < 1e-3


def test_a_corpus_smaller_than_the_number_of_ranks_trains_on_them_as_on_one(ground: Path, tmp_path: Path) -> None:
    """Three speakers with three utterances each: one trains, one validates, one tests."""
    corpus = write_corpus(str(tmp_path / "corpus"), speakers=3, clips=3, seconds=0.4)
    words = (f"data.shards={corpus}", "data.split.folds=3", "optim.epochs=3")
    one, four, parts = (job(ground, tmp_path / name, *words) for name in ("one", "four", "parts"))
    task = open_task(one)
    assert len(task.parts.train) == len(task.parts.validation) == len(task.parts.test) == 3
    (how, alone), (_, shared) = train(one, 1, tmp_path), train(four, 4, tmp_path)
    assert how == "finished"
    assert len(losses(alone)) == 3
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)
    assert distance(trained_parameters(four), trained_parameters(one)) < 1e-3
    assert train(parts, 4, tmp_path, stop_at=2)[0] == "stopped"
    assert train(parts, 4, tmp_path)[0] == "finished"
    ours, theirs = trained_parameters(parts), trained_parameters(four)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    _, model, reference = load_checkpoint(checkpoint.locate(parts.run_url))
    assert reference is not None
    assert len(reference.R_p) == 3
    found = evaluate(task, model, reference, task.parts.test, Place())
    assert all(np.isfinite(logits).all() for logits in found.logits.values())


def fifty_steps(ground: Path, folder: Path, world: int) -> list[float]:
    """Losses of a training of frozen encoders, slow enough not to know every utterance by heart."""
    folder.mkdir()
    frozen = ("encoders.mamba.unfreeze=none", "encoders.attention.unfreeze=none", f"data.cache={ground / 'cache'}")
    slow = ("optim.epochs=5", "optim.batch_size=4", "optim.lr=2e-4")
    how, events = train(job(ground, folder, *frozen, *slow), world, folder)
    assert how == "finished"
    assert max(event["step"] for kind, event in events if kind == "epoch") >= 50
    return losses(events)


def test_fifty_steps_agree_on_any_number_of_ranks(ground: Path, tmp_path: Path) -> None:
    alone, two, four = (fifty_steps(ground, tmp_path / str(world), world) for world in (1, 2, 4))
    assert two == pytest.approx(alone, rel=1e-3)
    assert four == pytest.approx(alone, rel=1e-3)
    assert alone[-1] < 0.9 * alone[0]


def test_transport_over_frames_does_not_know_the_world_size(ground: Path, tmp_path: Path) -> None:
    words = ("fusion.over=frames", "optim.epochs=1", f"data.cache={tmp_path / 'cache'}")
    (_, alone), (_, three) = (train(job(ground, tmp_path / str(n), *words), n, tmp_path) for n in (1, 3))
    assert losses(three) == pytest.approx(losses(alone), rel=1e-4)


def test_a_local_plan_is_another_mathematics(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    _, events = train(job(ground, tmp_path, "fusion.transport_scope=local"), 2, tmp_path)
    assert losses(events) != pytest.approx(undisturbed[1], rel=1e-4)


STEPS = 6  # of an epoch; after them two batches are validated, and two give reference rows


@pytest.mark.parametrize(("stop_at", "step"), [(2, 2), (STEPS + 1, STEPS), (STEPS + 3, STEPS), (STEPS + 5, STEPS + 1)])
def test_a_run_stopped_in_a_step_in_validation_or_after_it_goes_on_bit_for_bit(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]], stop_at: int, step: int
) -> None:
    settings = job(ground, tmp_path)
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


def test_a_run_goes_on_bit_for_bit_on_three_ranks(ground: Path, tmp_path: Path) -> None:
    whole, parts = job(ground, tmp_path / "whole"), job(ground, tmp_path / "parts", "checkpoint.every_steps=1")
    assert train(whole, 3, tmp_path)[0] == "finished"
    assert train(parts, 3, tmp_path, stop_at=4)[0] == "stopped"
    assert train(parts, 3, tmp_path)[0] == "finished"
    ours, theirs = trained_parameters(parts), trained_parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_reference_rows_within_an_epoch_are_those_of_the_parameters_beside_them(ground: Path, tmp_path: Path) -> None:
    settings = job(ground, tmp_path, "data.keep_frozen=false", "checkpoint.every_steps=2")
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


def test_a_stop_between_two_epochs_keeps_what_the_first_one_saved(ground: Path, tmp_path: Path) -> None:
    settings = job(ground, tmp_path, "optim.epochs=3")
    assert train(settings, 1, tmp_path, stop_at=STEPS + 4)[0] == "stopped"
    found = checkpoint.newest(settings.run_url)
    assert found is not None
    assert (found.manifest.epoch, found.manifest.epoch_step) == (1, 0)
    assert found.manifest.score is not None
    assert REFERENCE_PART in found.manifest.files


@pytest.mark.parametrize("stop_at", [None, STEPS + 4, STEPS + 13])  # its end; the ends of an epoch and of a step
def test_reference_rows_that_a_kill_kept_from_a_checkpoint_are_added_when_the_run_goes_on(
    ground: Path, tmp_path: Path, stop_at: int | None
) -> None:
    settings = job(ground, tmp_path, "checkpoint.every_steps=2")
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
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    settings = job(ground, tmp_path, "checkpoint.every_steps=2", "checkpoint.keep=1")
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


def test_ranks_leave_a_validation_together(ground: Path, tmp_path: Path) -> None:
    settings = job(ground, tmp_path, "optim.epochs=1")
    assert train(settings, 2, tmp_path, stop_at=STEPS)[0] == "stopped"
    assert checkpoint.newest(settings.run_url).manifest.epoch_step == STEPS


def test_a_run_goes_on_with_another_number_of_workers(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    settings = job(ground, tmp_path)
    assert train(settings, 2, tmp_path, stop_at=3)[0] == "stopped"
    assert train(settings, 1, tmp_path)[0] == "finished"
    assert distance(trained_parameters(settings), trained_parameters(undisturbed[0])) < 1e-3


def damage(corpus: Path) -> None:
    """Make the first two recordings of every other speaker unreadable."""
    for shard in corpus.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        for _ in range(2):
            found = data.index(b"fLaC")
            data[found : found + 4] = b"none"
        shard.write_bytes(data)


def test_broken_samples_are_skipped_and_named_and_too_many_end_the_run(tmp_path: Path) -> None:
    write_corpus(str(tmp_path / "corpus"), speakers=8, clips=9, seconds=0.4)
    write_random_encoders(str(tmp_path / "encoders"))
    damage(tmp_path / "corpus")
    words = ("fusion.name=cnn", "optim.epochs=1")
    how, events = train(job(tmp_path, tmp_path / "a", "data.max_broken=0.3", *words), 2, tmp_path)
    assert how == "finished"
    assert any("skipped s" in event.get("text", "") for _, event in events)
    how, _ = train(job(tmp_path, tmp_path / "b", *words), 2, tmp_path)
    assert how.startswith("failed: data.max_broken:")
    assert "-0000" in how
    assert "-0001" in how


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_batch(ground: Path, tmp_path: Path) -> None:
    settings = job(ground, tmp_path, "optim.lr=1e30", "fusion.name=concat", "optim.clip_norm=0")
    how, _ = train(replace(settings, name="wild"), 1, tmp_path)
    assert "the loss of step" in how
    assert "the batch was s" in how


def test_a_run_that_fails_lets_a_checkpoint_arrive_that_is_being_saved(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def slowly(*args: Any) -> str:
        time.sleep(1)
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", slowly)
    words = ("optim.lr=1e30", "fusion.name=concat", "optim.clip_norm=0", "checkpoint.every_steps=1")
    settings = job(ground, tmp_path, *words, f"data.cache={ground / 'cache'}")
    with pytest.raises(UserError, match="the loss of step 1 is"):
        train_rank(settings, Place(), Listener(), lambda record: None)
    assert checkpoint.newest(settings.run_url).manifest.step == 1


def test_a_loss_that_is_not_finite_can_be_left_out(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps = ParrotModel.forward, itertools.count()

    def spoilt(self: ParrotModel, *args: Any) -> torch.Tensor:
        bad = self.training and next(steps) == 3  # the first one is the rehearsal
        return forward(self, *args) * (float("nan") if bad else 1)

    monkeypatch.setattr(ParrotModel, "forward", spoilt)
    words = ("fusion.name=concat", "optim.epochs=1", "optim.non_finite=skip", "data.keep_frozen=false")
    settings = job(ground, tmp_path, *words, "checkpoint.every_steps=1", "checkpoint.keep=100")
    listener = Listener()
    train_rank(settings, Place(), listener, lambda record: None)
    warnings = [event["text"] for kind, event in listener.events if kind == "warning"]
    assert len(warnings) == 1
    batch = open_task(settings).training_plan(0).global_batch(2)
    keys = ", ".join(open_task(settings).index.key[batch])
    assert warnings[0] == f"left out: the loss of step 2 is nan and its gradient's norm nan; the batch was {keys}"
    assert [event["non_finite"] for kind, event in listener.events if kind == "epoch"] == [1]
    parameters = [found.manifest.files[MODEL_PART]["sha256"] for found in checkpoint.find_all(settings.run_url)]
    assert parameters[1] == parameters[2]
    assert len(set(parameters)) == len(parameters) - 1


def test_gradients_too_large_for_fp16_leave_steps_out_and_after_a_resume_the_same_ones(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ParrotModel.forward
    monkeypatch.setattr(ParrotModel, "forward", lambda self, *args: 16 * forward(self, *args))
    words = ("fusion.name=concat", "optim.epochs=1", "checkpoint.every_steps=1", "checkpoint.keep=100")
    whole, parts = (job(ground, tmp_path / name, *words) for name in ("whole", "parts"))
    # Only a GPU is offered fp16, but a CPU computes it, and its first gradients are as much too large.
    whole, parts = (replace(one, optim=replace(one.optim, precision="fp16")) for one in (whole, parts))
    listener = Listener()
    train_rank(whole, Place(), listener, lambda record: None)
    with pytest.raises(Stopped):
        train_rank(parts, Place(), Listener(stop_at=2), lambda record: None)
    train_rank(parts, Place(), Listener(), lambda record: None)
    found = checkpoint.find_all(whole.run_url)
    parameters = [one.manifest.files[MODEL_PART]["sha256"] for one in found]
    scales = [read_state(one)["scaler"]["scale"] for one in found]
    left_out = [now < before for before, now in pairwise(scales)]
    assert any(left_out[1:])  # after the resume
    assert [now == before for before, now in pairwise(parameters)] == left_out
    assert [event["non_finite"] for kind, event in listener.events if kind == "epoch"] == [0]
    assert [one.manifest.files[MODEL_PART]["sha256"] for one in checkpoint.find_all(parts.run_url)] == parameters


def test_a_run_whose_loss_stays_infinite_ends_on_all_ranks_though_it_may_leave_steps_out(
    ground: Path, tmp_path: Path
) -> None:
    words = ("optim.lr=1e30", "fusion.name=concat", "optim.clip_norm=0", "optim.non_finite=skip")
    how, events = train(job(ground, tmp_path, *words), 2, tmp_path)
    assert how.startswith("failed: optim.non_finite: more than 1 of the")
    warnings = [event["text"] for kind, event in events if kind == "warning"]
    assert [text.partition(" is ")[0] for text in warnings] == ["left out: the loss of step 1"]


def messages(events: list[tuple[str, dict]]) -> str:
    return "\n".join(event["text"] for kind, event in events if kind == "message")


def test_frozen_work_is_done_once_for_all_runs_that_share_it(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    cache = f"data.cache={tmp_path / 'cache'}"
    words = ("optim.epochs=1", "fusion.name=concat", cache)
    _, first = train(job(ground, tmp_path / "a", *words), 2, tmp_path)
    assert "frozen part of mamba: to be computed once" in messages(first)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("part-*")}
    _, second = train(job(ground, tmp_path / "b", "data.split.fold=1", *words), 1, tmp_path)
    assert "frozen part of mamba: computed before" in messages(second)
    assert "frozen part of attention: computed before" in messages(second)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("part-*")} == before
    for other in ("encoders.mamba.unfreeze=none", "optim.precision=bf16", "data.max_seconds=0.2"):
        _, third = train(job(ground, tmp_path / other, other, *words), 1, tmp_path)
        assert "frozen part of mamba: to be computed once" in messages(third)


def test_a_run_can_be_stopped_while_frozen_work_is_done(ground: Path, tmp_path: Path) -> None:
    settings = job(ground, tmp_path, "optim.epochs=1", "fusion.name=concat")
    assert train(settings, 2, tmp_path, stop_at=-1)[0] == "stopped"
    assert list((tmp_path / "cache").rglob("part-000000.places.json"))
    assert train(settings, 2, tmp_path)[0] == "finished"


def test_training_from_activations_is_training_from_audio(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    how, events = train(job(ground, tmp_path, "data.keep_frozen=false"), 1, tmp_path)
    assert how == "finished"
    assert "frozen part" not in messages(events)
    assert losses(events) == pytest.approx(undisturbed[1], rel=1e-4)


def test_changed_waveforms_and_drawn_classes_are_the_same_on_any_world_and_on_resume(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    words = ["data.augment.noise=0.1", "data.augment.speed=0.1", "data.sampling=balanced", "data.bucketing=true"]
    whole, parts = job(ground, tmp_path / "whole", *words), job(ground, tmp_path / "parts", *words)
    how, events = train(whole, 1, tmp_path)
    assert how == "finished"
    assert "data.augment" in messages(events)
    assert "frozen part" not in messages(events)
    assert losses(events) != pytest.approx(undisturbed[1], rel=1e-4)
    assert train(parts, 2, tmp_path, stop_at=4)[0] == "stopped"
    assert train(parts, 1, tmp_path)[0] == "finished"
    assert distance(trained_parameters(parts), trained_parameters(whole)) < 1e-3
