"""Training the encoders in full and half precision, with activations computed again, at falling learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from parrot_dist import Predictor, configuration
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.local.encoders import write_all, write_random_encoders
from parrot_dist.training.inference import Place
from parrot_dist.training.model import Inputs, ParrotModel, build_model, dump_trained, load_trained
from parrot_dist.training.optimizer import build_optimizer
from parrot_dist.training.parallel import wrap
from parrot_dist.training.precision import autocast
from tests import jobs
from tests.corpus import tone
from tests.hub import fetched, offline
from tests.jobs import Material, fingerprint, train_here


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_random_encoders(str(tmp_path_factory.mktemp("encoders")))


def job(sources: dict[str, str], *words: str) -> Config:
    fixed = ["name=run", "output=/tmp/out", "data.shards=/tmp/corpus", "data.classes=[low,high]"]
    encoders = [f"encoders.{branch}.source={source}" for branch, source in sources.items()]
    return configuration.load(None, [*fixed, *encoders, *words])


def batches(steps: int) -> Iterator[tuple[Inputs, torch.Tensor]]:
    for step in range(steps):
        labels = torch.tensor([step % 2, 1, 0, 1])
        waves = [torch.from_numpy(tone(120 + 80 * int(y), 0.5, seed=10 * step + i)) for i, y in enumerate(labels)]
        yield {"mamba": list(waves), "attention": list(waves)}, labels


def losses(settings: Config, steps: int, device: torch.device) -> torch.Tensor:
    model = build_model(settings).to(device).train()
    optimizer, found = build_optimizer(model, settings), []
    scaler = torch.amp.GradScaler(device.type, enabled=settings.optim.precision == "fp16")
    for inputs, labels in batches(steps):
        with autocast(settings.optim.precision, device):
            loss = F.cross_entropy(model(inputs, torch.arange(len(labels), device=device)), labels.to(device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append(loss.item())
    return torch.tensor(found)


ON_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.mark.parametrize(
    ("precision", "device"),
    [("bf16", "cpu"), pytest.param("bf16", "cuda", marks=ON_CUDA), pytest.param("fp16", "cuda", marks=ON_CUDA)],
)
def test_thirty_steps_in_half_precision_stay_near_those_in_float32(
    sources: dict[str, str], precision: str, device: str
) -> None:
    words = [f"encoders.{branch}.unfreeze=last:1" for branch in ("mamba", "attention")]
    whole, half = (
        losses(job(sources, "scale.use_gpu=true", f"optim.precision={name}", *words), 30, torch.device(device))
        for name in ("float32", precision)
    )
    assert whole[-10:].mean() < 0.8 * whole[:10].mean()  # it learns, so there is something to differ in
    assert (whole - half).abs().max() < 0.1
    assert not torch.equal(whole, half)


def gradients(settings: Config) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of one step, and how many bytes the graph kept for them."""
    model, kept = build_model(settings), 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    model.train()
    inputs, labels = next(batches(1))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(model(inputs, torch.arange(len(labels))), labels)
    loss.backward()
    return {name: x.grad for name, x in model.trained().items() if x.grad is not None}, kept


@pytest.mark.parametrize(
    ("mamba", "attention", "dims"),
    [("W", "H", (64, 128)), ("A(S)", "A(B)", (5 * 32, 5 * 64))],  # of an Audio-Mamba, its five bands side by side
)
def test_two_encoders_of_one_family_train_together(
    tmp_path: Path, mamba: str, attention: str, dims: tuple[int, int]
) -> None:
    specs = write_all(str(tmp_path))
    words = [f"encoders.{branch}.unfreeze=all" for branch in ("mamba", "attention")]
    settings = job({"mamba": specs[mamba], "attention": specs[attention]}, *words)
    model = build_model(settings).train()
    inputs, labels = next(batches(1))
    assert [embedding.shape for embedding in model.embed(inputs)] == [(4, dim) for dim in dims]
    before = {name: x.detach().clone() for name, x in model.trained().items()}
    F.cross_entropy(model(inputs, torch.arange(len(labels))), labels).backward()
    build_optimizer(model, settings).step()
    for name, parameter in model.trained().items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    moved = {name for name, x in model.trained().items() if not torch.equal(x, before[name])}
    assert moved == before.keys()


def test_activations_computed_again_give_the_same_gradients_for_less_memory(sources: dict[str, str]) -> None:
    words = [f"encoders.{branch}.unfreeze=all" for branch in ("mamba", "attention")]
    again = [f"encoders.{branch}.recompute=true" for branch in ("mamba", "attention")]
    whole, kept = gradients(job(sources, *words))
    recomputed, less = gradients(job(sources, *words, *again))
    assert whole.keys() == recomputed.keys()
    assert all(torch.equal(whole[name], recomputed[name]) for name in whole)
    assert less < 0.7 * kept


def test_learning_rates_fall_from_block_to_block(sources: dict[str, str]) -> None:
    settings = job(
        sources, "encoders.mamba={unfreeze: all, lr: 1e-2, lr_decay: 0.5}", "encoders.attention.unfreeze=last:1"
    )
    model = build_model(settings)
    rate = {id(x): group["lr"] for group in build_optimizer(model, settings).param_groups for x in group["params"]}
    rates = {name: rate[id(parameter)] for name, parameter in model.trained().items()}
    for name, found in rates.items():
        if name.startswith("encoders.mamba.blocks.1.") or name.startswith("encoders.mamba.encoder_norm"):
            assert found == 1e-2
        elif name.startswith("encoders.mamba.blocks.0."):
            assert found == 0.5e-2
        elif name.startswith("encoders.mamba."):
            assert found == 0.25e-2
        elif name.startswith("encoders.attention."):
            assert found == 1e-4
        else:
            assert found == 1e-3


def test_a_trained_parameter_without_a_gradient_ends_the_run_by_name(
    local_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_an_idle_one(settings: Config) -> ParrotModel:
        model = build_model(settings)
        model.encoders["mamba"].blocks[1].register_parameter("idle", torch.nn.Parameter(torch.ones(1)))
        return model

    monkeypatch.setattr("parrot_dist.training.rank.build_model", with_an_idle_one)
    with pytest.raises(UserError, match=r"no gradient reaches encoders\.mamba\.blocks\.1\.idle: freeze"):
        train_here(jobs.settings(local_material, str(tmp_path)))


def test_ranks_share_what_is_trained_and_nothing_else(sources: dict[str, str]) -> None:
    model = build_model(job(sources, "encoders.mamba.unfreeze=last:1"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = wrap(model, Place(rank=0, world_size=2))
        named = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        assert named - network.parameters_to_ignore == model.trained().keys()
        assert {id(x) for x in network._module_parameters} == {id(x) for x in model.trained().values()}
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encoders.mamba.unfreeze=last:2"], r"unknown encoders\.mamba\.blocks\.0\."),
        (["encoders.mamba.unfreeze=none"], r"no encoders\.mamba\.blocks\.1\."),
        (["encoders.mamba.unfreeze=last:1", "data.classes=[a,b,c]"], r"is \(3,.*\), not \(2,.*\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_parameters(
    sources: dict[str, str], words: list[str], told: str
) -> None:
    other = dump_trained(build_model(job(sources, *words)))
    with pytest.raises(UserError, match=f"not those of the configured model: .*{told}"):
        load_trained(build_model(job(sources, "encoders.mamba.unfreeze=last:1")), other)


def test_a_run_keeps_to_the_commit_that_it_began_with(
    local_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, old, new = write_random_encoders(str(tmp_path / "newer"), seed=1), 40 * "0", 40 * "1"
    specs = {old: local_material.encoders["attention"], new: newer["attention"]}
    cache = offline(tmp_path / "hub", monkeypatch)
    fetched(cache, "me/hubert", old, {commit: spec.partition(":")[2] for commit, spec in specs.items()})
    words = jobs.settings(local_material, str(tmp_path / "runs"), "encoders.attention.source=hf:me/hubert")
    run, sound = train_here([*words, "optim.epochs=1"]), tone(200, 0.4)
    before, (step, _) = Predictor.load(run, device="cpu").predict(sound), fingerprint(run)
    fetched(cache, "me/hubert", new, {})
    assert (Predictor.load(run, device="cpu").predict(sound) == before).all()
    assert fingerprint(train_here([*words, "optim.epochs=2"]))[0] == 2 * step
