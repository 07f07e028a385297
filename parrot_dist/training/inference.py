"""A network over all samples of a plan, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parrot_dist.data.augmentation import Augmentation
from parrot_dist.data.frozen import Kept
from parrot_dist.data.plan import EpochPlan, Rows, rank_lanes
from parrot_dist.data.stream import RankStream, Skipped, Source, Utterance, iterate
from parrot_dist.encoders import Activation
from parrot_dist.errors import UserError
from parrot_dist.training.model import Inputs
from parrot_dist.training.precision import autocast
from parrot_dist.training.task import Task

Item = Utterance | Kept


class Stopped(Exception):  # noqa: N818  not an error: somebody asked for it
    """The run was asked to stop, and has saved what it had."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that compute together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def alone(cls) -> Place:
        """A process on its own, on a GPU if there is one."""
        return cls(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))

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


@dataclass(frozen=True)
class Batch:
    """This rank's rows of a global batch.

    Attributes:
        rows: (b,) int64, in the order of the plan.
        draws: (b,) int64, see `EpochPlan.draws`.
        inputs: branch -> what its encoder takes, one for each row: waveforms, or activations of its frozen prefix.
        skipped: samples of the batch that cannot be used.
    """

    rows: Tensor
    draws: Tensor
    inputs: Inputs
    skipped: list[Skipped]


def open_stream(
    task: Task,
    feeds: Mapping[str, Source[Item]],
    plan: EpochPlan,
    place: Place,
    start: int = 0,
    augmentation: Augmentation | None = None,
) -> Iterator[Batch]:
    """This rank's share of every step of `plan` from `start` on; each branch is fed by its own source.

    `augmentation` changes the waveforms.
    """
    lanes = rank_lanes(plan.lanes, place.rank, place.world_size)
    sources = {id(source): source for source in feeds.values()}
    streams = {
        number: iterate(RankStream(source, plan, lanes, start, augmentation), task.config.data.workers)
        for number, source in sources.items()
    }
    for step, parts in enumerate(zip(*streams.values(), strict=True), start):
        skipped = {item.row: item for part in parts for item in part if isinstance(item, Skipped)}
        good = {
            number: [item for item in part if not isinstance(item, Skipped) and item.row not in skipped]
            for number, part in zip(streams, parts, strict=True)
        }
        rows = np.array([item.row for item in parts[0]], np.int64)
        kept = np.array([row not in skipped for row in rows.tolist()], bool)
        yield Batch(
            torch.from_numpy(rows[kept]),
            torch.from_numpy(plan.draws(step, lanes)[kept]),
            {branch: [to_input(item, place.device) for item in good[id(source)]] for branch, source in feeds.items()},
            list(skipped.values()),
        )


def to_input(item: Item, device: torch.device) -> Tensor | Activation:
    """What an encoder takes, on its device."""
    if isinstance(item, Utterance):
        return torch.from_numpy(item.waveform).to(device, non_blocking=True)
    if item.activation.x.device == device:
        return item.activation
    return replace(item.activation, x=item.activation.x.to(device, non_blocking=True))


@torch.no_grad()
def infer(
    task: Task,
    feeds: Mapping[str, Source[Item]],
    rows: Rows,
    place: Place,
    compute: Callable[[Inputs, list[int]], Tensor],
    precision: str | None = None,
    stop_wanted: Callable[[], bool] = lambda: False,
) -> tuple[Rows, np.ndarray, list[Skipped]]:
    """`compute` over every one of `rows` once, in global batches; the same result on every rank.

    Args:
        compute: (inputs of this rank's rows, number of rows of every rank) -> (b, F) of this rank, under autocast.
        precision: of the autocast, if not that of training.
        stop_wanted: asked before each batch, on every rank.

    Returns:
        The rows that could be read, ascending, (n,); what was computed for them, (n, F) float32; and the others.

    Raises:
        Stopped: on all ranks, as `stop_wanted` on one of them.
    """
    numbers, values, broken = [], [], []
    for batch in open_stream(task, feeds, task.evaluation_plan(rows), place):
        counts, stops = place.exchange([len(batch.rows), stop_wanted()]).T
        if stops.any():
            raise Stopped
        sizes: list[int] = counts.tolist()
        broken += batch.skipped
        if sum(sizes) == 0:
            continue
        with autocast(precision or task.config.optim.precision, place.device):
            result = compute(batch.inputs, sizes)
        numbers.append(batch.rows.numpy())
        values.append(result.float().cpu().numpy())
    parts = place.collect((np.concatenate(numbers), np.concatenate(values), broken) if numbers else None)
    parts = [part for part in parts if part is not None]
    if not parts:
        raise UserError(f"data: none of {len(rows)} utterances in {task.config.data.shards} can be read")
    found = np.concatenate([part[0] for part in parts])
    order = np.argsort(found)
    return found[order], np.concatenate([part[1] for part in parts])[order], [one for part in parts for one in part[2]]
