"""Encoders that are frozen at first: exact on any way through the boundary, and loadable from before it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parrot_dist import Predictor, configuration
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.training import checkpoint
from parrot_dist.training.export import write_export
from parrot_dist.training.inference import Place
from parrot_dist.training.loop import Loop
from parrot_dist.training.model import build_model
from parrot_dist.training.prefix import open_feeds
from parrot_dist.training.snapshot import read_state
from parrot_dist.training.task import open_task
from tests import ranks
from tests.corpus import tone
from tests.jobs import Material, drop_reference, fingerprint, settings, train_here

STEPS = 6  # of an epoch of `settings`
LATE = (
    "encoders.attention.unfreeze_at_epoch=1",
    "encoders.mamba.unfreeze_at_epoch=2",
    "optim.precision=float32",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
)


def job(material: Material, folder: Path, *words: str) -> list[str]:
    return settings(material, str(folder / "runs"), *LATE, f"data.cache={folder / 'cache'}", *words)


@dataclass
class Whole:
    """An undisturbed run: its checkpoints, what it said, and its encoders' weights after each epoch."""

    folder: Path
    words: list[str]
    config: Config
    ats: list[int | None] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "run"

    def put(self, kind: str, **data: Any) -> None:
        if kind == "message":
            self.messages.append(data["text"])

    def stop_wanted(self) -> bool:
        return False

    def notice(self) -> None:
        return None

    def at(self, step: int | None) -> None:
        self.ats.append(step)


@pytest.fixture(scope="module")
def whole(local_material: Material, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    words = job(local_material, folder)
    one = Whole(folder, words, configuration.load(None, words))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task, model, place = open_task(one.config), build_model(one.config), Place()

    def remember(_: object) -> None:
        one.weights.append({name: tensor.clone() for name, tensor in model.encoders.state_dict().items()})

    Loop(task, model, partial(open_feeds, task, model, place, one), place, one, remember).run(None)
    torch.set_num_threads(threads)
    return one


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    """Where the parameters lie that are no longer the same bits: branch, and block or norm."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {re.match(r"\w+\.(encoder\.)?(\w*norm|(layers|blocks)\.\d+)", name)[0] for name in names}


def test_each_encoder_is_as_published_until_its_epoch(whole: Whole) -> None:
    published = build_model(whole.config).encoders.state_dict()
    attention = {"attention.encoder.layers.1", "attention.encoder.layer_norm"}
    mamba = {"mamba.blocks.1", "mamba.encoder_norm"}
    assert [changed(published, weights) for weights in whole.weights] == [set(), attention, attention | mamba]


def test_a_checkpoint_holds_what_was_trained_and_the_optimiser_goes_on(whole: Whole) -> None:
    steps = []
    for one in checkpoint.find_all(str(whole.run)):
        if one.manifest.epoch_step == 0:
            state = read_state(one)["optimizer"]["state"]
            steps.append(sorted({int(of["step"]) for of in state.values()}))
    assert steps == [[STEPS], [STEPS, 2 * STEPS], [STEPS, 2 * STEPS, 3 * STEPS]]


def test_what_feeds_the_encoders_follows_and_no_rank_counts_as_hanging_meanwhile(whole: Whole) -> None:
    trained = [text for text in whole.messages if text.startswith("trained")]
    assert trained == [
        f"trained of the encoders: mamba {mamba}, attention {attention}"
        for mamba, attention in (("none", "none"), ("none", "last:1"), ("last:1", "last:1"))
    ]
    frozen = [text.split(" (")[0] for text in whole.messages if text.startswith("frozen part")]
    once, before = "to be computed once", "computed before"
    assert [text.removeprefix("frozen part of ") for text in frozen] == [
        *(f"mamba: {once}", f"attention: {once}"),
        *(f"mamba: {before}", f"attention: {once}"),
        *(f"mamba: {once}", f"attention: {before}"),
    ]
    following = [step for last, step in zip(whole.ats, whole.ats[1:], strict=False) if last is None]
    assert following == [0, STEPS, 2 * STEPS]


@pytest.mark.parametrize("amid_a_stop", [False, True])
@pytest.mark.parametrize("step", [4, STEPS, STEPS + 1, 2 * STEPS, 2 * STEPS + 3])
def test_a_run_lost_at_any_step_ends_with_the_same_bits(
    whole: Whole, local_material: Material, tmp_path: Path, step: int, amid_a_stop: bool
) -> None:
    saved = f"checkpoints/step-{step:08d}"
    shutil.copytree(whole.run / saved, tmp_path / "runs/run" / saved)
    if amid_a_stop:
        drop_reference(tmp_path / "runs/run" / saved)
    run = train_here(job(local_material, tmp_path))
    assert fingerprint(run) == fingerprint(str(whole.run))


def test_three_ranks_train_the_same_and_resume_bit_for_bit(
    whole: Whole, local_material: Material, tmp_path: Path
) -> None:
    three, parts = (configuration.load(None, job(local_material, tmp_path / name)) for name in ("three", "parts"))
    assert ranks.train(three, 3, tmp_path)[0] == "finished"
    assert ranks.distance(ranks.trained_parameters(three), ranks.trained_parameters(whole.config)) < 1e-3
    saved = f"checkpoints/step-{STEPS + 2:08d}"  # behind one boundary, before another
    shutil.copytree(Path(three.run_url) / saved, Path(parts.run_url) / saved)
    assert ranks.train(parts, 3, tmp_path)[0] == "finished"
    assert fingerprint(parts.run_url) == fingerprint(three.run_url)


@pytest.mark.parametrize("step", [STEPS, 2 * STEPS, 3 * STEPS])
def test_a_checkpoint_from_before_predicts_and_so_does_its_export(whole: Whole, tmp_path: Path, step: int) -> None:
    saved = whole.run / f"checkpoints/step-{step:08d}"
    write_export(str(saved), str(tmp_path / "out"))
    sound = tone(200, 0.4)
    probabilities = [Predictor.load(url, device="cpu").predict(sound) for url in (saved, tmp_path / "out")]
    assert np.array_equal(*probabilities)
    weights = Predictor.load(saved, device="cpu").model.encoders.state_dict()
    assert changed(whole.weights[step // STEPS - 1], weights) == set()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encoders.mamba.unfreeze=none"], "encoders.mamba.unfreeze_at_epoch: needs something to unfreeze"),
        (["optim.epochs=2"], "encoders.mamba.unfreeze_at_epoch: must be below optim.epochs (2)"),
        (["encoders.attention.unfreeze_at_epoch=-1"], "encoders.attention.unfreeze_at_epoch: must be 0 or more"),
    ],
)
def test_a_time_that_cannot_come_is_named_at_the_start(whole: Whole, words: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        configuration.load(None, [*whole.words, *words])
    assert told in str(error.value)
    assert str(error.value).count("unfreeze_at_epoch") == 1
