"""What scans are tested with: inputs, a reference in float64 that shares no code with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def draw(
    rows: int, length: int, channels: int, states: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """The arguments of `selective_scan`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(rows, length, channels),
        "dt": normal(rows, length, channels),
        "a": -normal(channels, states).exp() * 3,
        "b": normal(rows, length, states),
        "c": normal(rows, length, states),
        "skip": normal(channels),
        "gate": normal(rows, length, channels),
        "dt_bias": normal(channels),
    }


def recurrence(**inputs: Tensor) -> Tensor:
    """`selective_scan`, one step in time after another, everything in float64."""
    x, dt, a, b, c, skip, gate, dt_bias = (
        inputs[name].double() for name in ("x", "dt", "a", "b", "c", "skip", "gate", "dt_bias")
    )
    state = x.new_zeros(len(x), *a.shape)
    outputs = []
    for t in range(x.shape[1]):
        step = torch.log1p((dt[:, t] + dt_bias).exp())[..., None]
        state = state * (step * a).exp() + step * x[:, t, :, None] * b[:, t, None]
        y = (state * c[:, t, None]).sum(-1) + skip * x[:, t]
        outputs.append(y * gate[:, t] * gate[:, t].sigmoid())
    return torch.stack(outputs, 1)


def gradients(scan: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a weighted sum of what `scan` makes of the inputs, for each input; weighted alike for the same shape."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    y = scan(**leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return dict(zip(leaves, torch.autograd.grad((y * weights).sum(), list(leaves.values())), strict=True))
