"""Training the encoders in full and half precision, with activations computed again, at falling learning rates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from parrot_dist import config as configuration
from parrot_dist.config import Config
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training.inference import autocast
from parrot_dist.training.loop import build_optimizer
from parrot_dist.training.model import Inputs, ParrotModel, build_model
from tests.corpus import tone


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


def losses(model: ParrotModel, settings: Config, steps: int) -> torch.Tensor:
    model.train()
    optimizer, found = build_optimizer(model, settings), []
    for inputs, labels in batches(steps):
        with autocast(settings.optim.precision, torch.device("cpu")):
            loss = F.cross_entropy(model(inputs, torch.arange(len(labels))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


def test_thirty_steps_in_bf16_stay_near_those_in_float32(sources: dict[str, str]) -> None:
    runs = []
    for precision in ("float32", "bf16"):
        words = [f"encoders.{branch}.unfreeze=last:1" for branch in ("mamba", "attention")]
        settings = job(sources, f"optim.precision={precision}", *words)
        runs.append(losses(build_model(settings), settings, 30))
    whole, half = runs
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
