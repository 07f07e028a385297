"""Max-pooling of neighbours, for which torch takes a third of a head's training step on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _PoolPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        first, second = x[..., :-1:2], x[..., 1::2]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((first >= second).to(x.dtype))
        ctx.odd = x.shape[-1] % 2
        return torch.maximum(first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (first_wins,) = ctx.saved_tensors
        to_first = gradient * first_wins
        both = torch.stack([to_first, gradient - to_first], -1).flatten(-2)
        return torch.nn.functional.pad(both, (0, ctx.odd))


def pool_pairs(x: Tensor) -> Tensor:
    """The larger of every two neighbours: (..., L) -> (..., L // 2), with the gradient to the first of equals.

    The same numbers as `max_pool1d(x, 2)`, which walks through its windows one by one.
    """
    pooled: Tensor = _PoolPairs.apply(x)  # type: ignore[no-untyped-call]
    return pooled
