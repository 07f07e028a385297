"""The loop on real processes: the same mathematics on any number of ranks; frozen work once (contracts 6, 11)."""

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

from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.training import checkpoint
from parrot_dist.training.evaluation import evaluate
from parrot_dist.training.inference import Place, Stopped
from parrot_dist.training.model import MODEL_PART, ParrotModel, load_checkpoint
from parrot_dist.training.rank import train_rank
from parrot_dist.training.snapshot import read_state
from parrot_dist.training.task import open_task
from tests.corpus import write_corpus
from tests.jobs import Material, short_job
from tests.ranks import Listener, distance, losses, train, trained_parameters


@pytest.mark.parametrize(("world", "micro_batch"), [(2, 0), (3, 1)])
def test_the_world_size_changes_nothing_but_the_rounding(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]], world: int, micro_batch: int
) -> None:
    settings = short_job(short, tmp_path, f"optim.micro_batch={micro_batch}")
    how, events = train(settings, world, tmp_path)
    assert how == "finished"
    assert losses(events) == pytest.approx(undisturbed[1], rel=1e-4)
    assert distance(trained_parameters(settings), trained_parameters(undisturbed[0])) < 1e-3


def test_a_corpus_smaller_than_the_number_of_ranks_trains_on_them_as_on_one(short: Material, tmp_path: Path) -> None:
    """Three speakers with three utterances each: one trains, one validates, one tests."""
    corpus = write_corpus(str(tmp_path / "corpus"), speakers=3, clips=3, seconds=0.4)
    words = (f"data.shards={corpus}", "data.split.folds=3", "optim.epochs=3")
    one, four, parts = (short_job(short, tmp_path / name, *words) for name in ("one", "four", "parts"))
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


def fifty_steps(short: Material, folder: Path, world: int) -> list[float]:
    """Losses of a training of frozen encoders, slow enough not to know every utterance by heart."""
    folder.mkdir()
    frozen = (
        "encoders.mamba.unfreeze=none",
        "encoders.attention.unfreeze=none",
        f"data.cache={folder.parent / 'cache'}",
    )
    slow = ("optim.epochs=5", "optim.batch_size=4", "optim.lr=2e-4")
    how, events = train(short_job(short, folder, *frozen, *slow), world, folder)
    assert how == "finished"
    assert max(event["step"] for kind, event in events if kind == "epoch") >= 50
    return losses(events)


def test_fifty_steps_agree_on_any_number_of_ranks(short: Material, tmp_path: Path) -> None:
    alone, two, four = (fifty_steps(short, tmp_path / str(world), world) for world in (1, 2, 4))
    assert two == pytest.approx(alone, rel=1e-3)
    assert four == pytest.approx(alone, rel=1e-3)
    assert alone[-1] < 0.9 * alone[0]


def test_transport_over_frames_does_not_know_the_world_size(short: Material, tmp_path: Path) -> None:
    words = ("fusion.over=frames", "optim.epochs=1", f"data.cache={tmp_path / 'cache'}")
    (_, alone), (_, three) = (train(short_job(short, tmp_path / str(n), *words), n, tmp_path) for n in (1, 3))
    assert losses(three) == pytest.approx(losses(alone), rel=1e-4)


def test_a_local_plan_is_another_mathematics(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    _, events = train(short_job(short, tmp_path, "fusion.transport_scope=local"), 2, tmp_path)
    assert losses(events) != pytest.approx(undisturbed[1], rel=1e-4)


def damage(corpus: Path) -> None:
    """Make the first two recordings of every other speaker unreadable."""
    for shard in corpus.glob("*.tar"):
        data = bytearray(shard.read_bytes())
        for _ in range(2):
            found = data.index(b"fLaC")
            data[found : found + 4] = b"none"
        shard.write_bytes(data)


def test_broken_samples_are_skipped_and_named_and_too_many_end_the_run(short: Material, tmp_path: Path) -> None:
    damaged = replace(short, corpus=write_corpus(str(tmp_path / "corpus"), speakers=8, clips=9, seconds=0.4))
    damage(tmp_path / "corpus")
    words = ("fusion.name=cnn", "optim.epochs=1")
    how, events = train(short_job(damaged, tmp_path / "a", "data.max_broken=0.3", *words), 2, tmp_path)
    assert how == "finished"
    assert any("skipped s" in event.get("text", "") for _, event in events)
    how, _ = train(short_job(damaged, tmp_path / "b", *words), 2, tmp_path)
    assert how.startswith("failed: data.max_broken:")
    assert "-0000" in how
    assert "-0001" in how


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_batch(short: Material, tmp_path: Path) -> None:
    settings = short_job(short, tmp_path, "optim.lr=1e30", "fusion.name=concat", "optim.clip_norm=0")
    how, _ = train(replace(settings, name="wild"), 1, tmp_path)
    assert "the loss of step" in how
    assert "the batch was s" in how


def test_a_run_that_fails_lets_a_checkpoint_arrive_that_is_being_saved(
    short: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def slowly(*args: Any) -> str:
        time.sleep(1)
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", slowly)
    words = ("optim.lr=1e30", "fusion.name=concat", "optim.clip_norm=0", "checkpoint.every_steps=1")
    settings = short_job(short, tmp_path, *words)
    with pytest.raises(UserError, match="the loss of step 1 is"):
        train_rank(settings, Place(), Listener(), lambda record: None)
    assert checkpoint.newest(settings.run_url).manifest.step == 1


def test_a_loss_that_is_not_finite_can_be_left_out(
    short: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps = ParrotModel.forward, itertools.count()

    def spoilt(self: ParrotModel, *args: Any) -> torch.Tensor:
        bad = self.training and next(steps) == 3  # the first one is the rehearsal
        return forward(self, *args) * (float("nan") if bad else 1)

    monkeypatch.setattr(ParrotModel, "forward", spoilt)
    words = ("fusion.name=concat", "optim.epochs=1", "optim.non_finite=skip", "data.keep_frozen=false")
    settings = short_job(short, tmp_path, *words, "checkpoint.every_steps=1", "checkpoint.keep=100")
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
    short: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ParrotModel.forward
    monkeypatch.setattr(ParrotModel, "forward", lambda self, *args: 16 * forward(self, *args))
    words = ("fusion.name=concat", "optim.epochs=1", "checkpoint.every_steps=1", "checkpoint.keep=100")
    whole, parts = (short_job(short, tmp_path / name, *words) for name in ("whole", "parts"))
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
    short: Material, tmp_path: Path
) -> None:
    words = ("optim.lr=1e30", "fusion.name=concat", "optim.clip_norm=0", "optim.non_finite=skip")
    how, events = train(short_job(short, tmp_path, *words), 2, tmp_path)
    assert how.startswith("failed: optim.non_finite: more than 1 of the")
    warnings = [event["text"] for kind, event in events if kind == "warning"]
    assert [text.partition(" is ")[0] for text in warnings] == ["left out: the loss of step 1"]


def messages(events: list[tuple[str, dict]]) -> str:
    return "\n".join(event["text"] for kind, event in events if kind == "message")


def test_frozen_work_is_done_once_for_all_runs_that_share_it(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    cache = f"data.cache={tmp_path / 'cache'}"
    words = ("optim.epochs=1", "fusion.name=concat", cache)
    _, first = train(short_job(short, tmp_path / "a", *words), 2, tmp_path)
    assert "frozen part of mamba: to be computed once" in messages(first)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("part-*")}
    _, second = train(short_job(short, tmp_path / "b", "data.split.fold=1", *words), 1, tmp_path)
    assert "frozen part of mamba: computed before" in messages(second)
    assert "frozen part of attention: computed before" in messages(second)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("part-*")} == before
    for other in ("encoders.mamba.unfreeze=none", "optim.precision=bf16", "data.max_seconds=0.2"):
        _, third = train(short_job(short, tmp_path / other, other, *words), 1, tmp_path)
        assert "frozen part of mamba: to be computed once" in messages(third)


def test_a_run_can_be_stopped_while_frozen_work_is_done(short: Material, tmp_path: Path) -> None:
    settings = short_job(short, tmp_path, "optim.epochs=1", "fusion.name=concat")
    assert train(settings, 2, tmp_path, stop_at=-1)[0] == "stopped"
    assert list((tmp_path / "cache").rglob("part-000000.places.json"))
    assert train(settings, 2, tmp_path)[0] == "finished"


def test_training_from_activations_is_training_from_audio(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    how, events = train(short_job(short, tmp_path, "data.keep_frozen=false"), 1, tmp_path)
    assert how == "finished"
    assert "frozen part" not in messages(events)
    assert losses(events) == pytest.approx(undisturbed[1], rel=1e-4)


def test_changed_waveforms_and_drawn_classes_are_the_same_on_any_world_and_on_resume(
    short: Material, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    words = ["data.augment.noise=0.1", "data.augment.speed=0.1", "data.sampling=balanced", "data.bucketing=true"]
    whole, parts = short_job(short, tmp_path / "whole", *words), short_job(short, tmp_path / "parts", *words)
    how, events = train(whole, 1, tmp_path)
    assert how == "finished"
    assert "data.augment" in messages(events)
    assert "frozen part" not in messages(events)
    assert losses(events) != pytest.approx(undisturbed[1], rel=1e-4)
    assert train(parts, 2, tmp_path, stop_at=4)[0] == "stopped"
    assert train(parts, 1, tmp_path)[0] == "finished"
    assert distance(trained_parameters(parts), trained_parameters(whole)) < 1e-3
