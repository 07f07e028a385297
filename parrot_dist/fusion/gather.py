"""The rows of a global batch, brought together over the process group, with gradients that flow back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def local_slice(sizes: Sequence[int], group: dist.ProcessGroup | None = None) -> slice:
    """Where this rank's rows lie among the global rows; `sizes` holds the number of rows of every rank.

    Raises:
        ValueError: `sizes` is not one number for each rank.
    """
    distributed = dist.is_available() and dist.is_initialized()
    world, rank = (dist.get_world_size(group), dist.get_rank(group)) if distributed else (1, 0)
    if len(sizes) != world:
        raise ValueError(f"sizes {list(sizes)}: one number of rows for each of the {world} ranks")
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def gather_rows(x: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of all ranks in rank order, (sum(sizes), ...), from this rank's x (sizes[rank], ...).

    One collective forward and one backward, in which a rank receives the gradient of its rows summed over what every
    rank did with them; so every rank has to take part in the backward pass. Ranks may hold no rows. Without an
    initialised process group x itself comes back.

    Raises:
        ValueError: `sizes` does not fit the ranks or this rank's rows.
    """
    mine = local_slice(sizes, group)
    if mine.stop - mine.start != len(x):
        raise ValueError(f"{len(x)} rows here, but sizes {list(sizes)} promise {mine.stop - mine.start}")
    if len(sizes) == 1:
        return x
    gathered: Tensor = _Gather.apply(x, tuple(sizes), mine, group)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sizes: tuple[int, ...],
        mine: slice,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.mine, ctx.group = mine, group
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # An all-reduce and a slice rather than a reduce-scatter: that wants equal parts, and the rows are few.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[ctx.mine], None, None, None
