"""A network over all samples of a plan, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parrot_dist.data.plan import EpochPlan, Rows, rank_lanes
from parrot_dist.data.stream import RankStream, Skipped, Utterance, iterate
from parrot_dist.errors import UserError
from parrot_dist.training.task import Task

PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that compute together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def exchange(self, numbers: list[int]) -> Rows:
        """(world_size, len(numbers)): the numbers of every rank."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        if self.world_size == 1:
            return mine.numpy()[None]
        all_of_them = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(all_of_them, mine)
        return torch.stack(all_of_them).numpy()

    def mean(self, value: Tensor) -> float:
        """The mean over ranks of one number."""
        total = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return float(total) / self.world_size

    def collect(self, part: Any) -> list[Any]:
        """The `part` of every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [part]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, part)
        return parts


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The mixed precision that `optim.precision` names."""
    return torch.autocast(device.type, PRECISION.get(precision), enabled=precision in PRECISION)


def open_stream(
    task: Task, plan: EpochPlan, place: Place, start: int = 0
) -> Iterator[tuple[list[Utterance], list[Skipped]]]:
    """This rank's utterances, and those it cannot use, of every step of `plan` from `start` on."""
    lanes = rank_lanes(plan.lanes, place.rank, place.world_size)
    stream = RankStream(task.corpus, plan, lanes, start)
    for items in iterate(stream, task.config.data.workers):
        yield (
            [item for item in items if isinstance(item, Utterance)],
            [item for item in items if isinstance(item, Skipped)],
        )


def to_tensors(utterances: list[Utterance], device: torch.device) -> list[Tensor]:
    """The waveforms as the encoders take them."""
    return [torch.from_numpy(one.waveform).to(device, non_blocking=True) for one in utterances]


def row_numbers(utterances: list[Utterance]) -> Tensor:
    """(b,) int64: their rows in the index."""
    return torch.tensor([one.row for one in utterances], dtype=torch.int64)


@torch.no_grad()
def infer(
    task: Task, rows: Rows, place: Place, compute: Callable[[list[Tensor], list[int]], Tensor]
) -> tuple[Rows, np.ndarray, list[Skipped]]:
    """`compute` over every one of `rows` once, in global batches; the same result on every rank.

    Args:
        compute: (waveforms of this rank, rows of every rank) -> (b, F) of this rank, under the run's autocast.

    Returns:
        The rows that could be read, ascending, (n,); what was computed for them, (n, F) float32; and the others.
    """
    numbers, values, broken = [], [], []
    for utterances, skipped in open_stream(task, task.evaluation_plan(rows), place):
        sizes = place.exchange([len(utterances)])[:, 0].tolist()
        broken += skipped
        if sum(sizes) == 0:
            continue
        with autocast(task.config.optim.precision, place.device):
            result = compute(to_tensors(utterances, place.device), sizes)
        numbers.append(row_numbers(utterances).numpy())
        values.append(result.float().cpu().numpy())
    parts = place.collect((np.concatenate(numbers), np.concatenate(values), broken) if numbers else None)
    parts = [part for part in parts if part is not None]
    if not parts:
        raise UserError(f"data: none of {len(rows)} utterances in {task.config.data.shards} can be read")
    found = np.concatenate([part[0] for part in parts])
    order = np.argsort(found)
    return found[order], np.concatenate([part[1] for part in parts])[order], [one for part in parts for one in part[2]]
