"""`make bench-cache`: what frozen work done once saves, as ratios from one run on one core.

1. Both encoders frozen: a later epoch of the whole loop (reading, training, validation, reference rows, checkpoint)
   against the head alone on embeddings that lie in memory as two tensors, and against the first epoch, which computes
   the embeddings.
2. The last block of an encoder unfrozen: a later epoch from kept activations against one from audio, beside what the
   floating-point operations of matrix products and convolutions predict.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from parrot_dist.config import Config
from parrot_dist.data.audio import SAMPLE_RATE
from parrot_dist.fusion import row_keys
from parrot_dist.training.cells import Silent
from parrot_dist.training.inference import Place, infer
from parrot_dist.training.model import build_model
from parrot_dist.training.optimizer import build_optimizer
from parrot_dist.training.precision import autocast
from parrot_dist.training.prefix import open_feeds
from parrot_dist.training.rank import train_rank
from parrot_dist.training.task import open_task
from tests.benchmarks.spoken import job, make_material

EPOCHS = 12


def epoch_seconds(config: Config) -> list[float]:
    """How long each epoch of a run takes, from the end of the one before, or from the start, to its own end."""
    ends = [time.perf_counter()]
    train_rank(config, Place(), Silent(), lambda record: ends.append(time.perf_counter()))
    return [after - before for before, after in pairwise(ends)]


def head_seconds(config: Config) -> list[float]:
    """How long each epoch of the head alone takes: the same batches, steps and validation, on two tensors."""
    task, model, place = open_task(config), build_model(config), Place()
    feeds = open_feeds(task, model, place, Silent())
    everything = [*task.parts.train, *task.parts.validation]
    rows, values, _ = infer(
        task, feeds, torch.tensor(everything).numpy(), place, lambda i, _: torch.cat(model.embed(i), 1)
    )
    embeddings = torch.zeros(len(task.index), values.shape[1])
    embeddings[rows] = torch.from_numpy(values)
    mamba, attention = embeddings.split([encoder.dim for _, encoder in model.branches()], 1)
    labels, head, optimizer = torch.from_numpy(task.labels), model.head, build_optimizer(model, config)
    took = []
    for epoch in range(EPOCHS):
        began = time.perf_counter()
        plan = task.training_plan(epoch)
        head.train()
        for step in range(plan.steps):
            batch = torch.from_numpy(plan.global_batch(step))
            with autocast(config.optim.precision, place.device):
                logits = head(mamba[batch], attention[batch], row_keys(config.seed, step, batch))
            F.cross_entropy(logits, labels[batch]).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), config.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        head.eval()
        plan = task.evaluation_plan(task.parts.validation)
        for step in range(plan.steps):
            batch = torch.from_numpy(plan.global_batch(step))
            with torch.no_grad(), autocast(config.optim.precision, place.device):
                head(mamba[batch], attention[batch])
        took.append(time.perf_counter() - began)
    return took


def step_flops(config: Config, kept: bool) -> int:
    """Floating-point operations of one training step on 32 clips of two seconds, from activations or from audio."""
    model = build_model(config)
    audio: list[Any] = [torch.randn(2 * SAMPLE_RATE) for _ in range(32)]
    inputs = {branch: encoder.prefix(audio) if kept else audio for branch, encoder in model.branches()}
    model.train()
    return count(lambda: model(inputs, torch.arange(32)).sum().backward())


def count(run: Callable[[], Tensor | None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = make_material(folder)
        for head in ("parrot", "concat"):
            config = job(
                folder,
                sources,
                f"name={head}",
                f"fusion.name={head}",
                f"optim.epochs={EPOCHS}",
                f"data.cache={folder / head}",
            )
            whole, alone = epoch_seconds(config), head_seconds(config)
            later = median(whole[1:])
            print(
                f"{head}, both encoders frozen: a later epoch is {later / median(alone[1:]):.2f} times the head alone, "
                f"{whole[0] / later:.1f} times less than the first ({whole[0]:.1f} s, then {later:.2f} s; head alone "
                f"{median(alone[1:]):.2f} s)"
            )
        for branch in ("mamba", "attention"):
            words = (
                f"fusion.branch={branch}",
                "fusion.name=fcn",
                f"encoders.{branch}.unfreeze=last:1",
                "optim.epochs=4",
            )
            runs = [
                job(folder, sources, f"name={branch}-{kept}", f"data.keep_frozen={kept}", *words)
                for kept in ("true", "false")
            ]
            kept, audio = (median(epoch_seconds(config)[1:]) for config in runs)
            predicted = step_flops(runs[0], True) / step_flops(runs[0], False)
            print(
                f"{branch}, last block of two unfrozen: a later epoch from kept activations takes {kept / audio:.2f} "
                f"of one from audio; matrix products and convolutions predict {predicted:.2f}"
            )


if __name__ == "__main__":
    main()
