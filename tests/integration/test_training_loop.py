"""The loop on real processes: the same mathematics on any number of ranks, and exact recovery (contracts 5, 6, 11)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parrot_dist import config as configuration
from parrot_dist.config import Config
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training import checkpoint
from parrot_dist.training.task import open_task
from tests.corpus import CLASSES, write_corpus
from tests.ranks import train, trained_parameters


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
    return [event["record"]["train_loss"] for kind, event in events if kind == "epoch"]


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm, all parameters together."""
    one, other = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in (ours, theirs))
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def undisturbed(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = job(ground, folder)
    how, events = train(settings, 1, folder)
    assert how == "finished"
    return settings, losses(events)


@pytest.mark.parametrize("world", [2, 3])
def test_the_world_size_changes_nothing_but_the_rounding(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]], world: int
) -> None:
    settings = job(ground, tmp_path)
    how, events = train(settings, world, tmp_path)
    assert how == "finished"
    assert losses(events) == pytest.approx(undisturbed[1], rel=1e-4)
    assert distance(trained_parameters(settings), trained_parameters(undisturbed[0])) < 1e-3


def test_a_local_plan_is_another_mathematics(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]]
) -> None:
    _, events = train(job(ground, tmp_path, "fusion.transport_scope=local"), 2, tmp_path)
    assert losses(events) != pytest.approx(undisturbed[1], rel=1e-4)


@pytest.mark.parametrize("stop_at", [2, 7])
def test_a_stopped_run_goes_on_bit_for_bit(
    ground: Path, tmp_path: Path, undisturbed: tuple[Config, list[float]], stop_at: int
) -> None:
    settings = job(ground, tmp_path)
    how, _ = train(settings, 1, tmp_path, stop_at)
    assert how == "stopped"
    how, events = train(settings, 1, tmp_path)
    assert how == "finished"
    assert f"going on from step {stop_at}" in events[0][1]["text"]
    resumed, whole = trained_parameters(settings), trained_parameters(undisturbed[0])
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert losses(events)[-1] == undisturbed[1][-1]


def test_a_run_goes_on_bit_for_bit_on_three_ranks(ground: Path, tmp_path: Path) -> None:
    whole, parts = job(ground, tmp_path / "whole"), job(ground, tmp_path / "parts")
    assert train(whole, 3, tmp_path)[0] == "finished"
    assert train(parts, 3, tmp_path, stop_at=4)[0] == "stopped"
    assert train(parts, 3, tmp_path)[0] == "finished"
    ours, theirs = trained_parameters(parts), trained_parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stop_between_two_epochs_keeps_what_the_first_one_saved(ground: Path, tmp_path: Path) -> None:
    settings = job(ground, tmp_path, "optim.epochs=3")
    steps = -(-len(open_task(settings).parts.train) // settings.optim.batch_size)
    assert train(settings, 1, tmp_path, stop_at=steps)[0] == "stopped"
    found = checkpoint.newest(settings.run_url)
    assert found is not None
    assert (found.manifest.epoch, found.manifest.epoch_step) == (1, 0)
    assert found.manifest.score is not None
    assert "reference.safetensors" in found.manifest.files


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
