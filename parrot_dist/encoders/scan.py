"""The selective scan of Mamba (Gu & Dao 2023, algorithm 2): a kernel on CUDA, plain torch elsewhere.

For every row and channel d the state of N numbers follows
    h_t = exp(dt_t A_d) h_{t-1} + dt_t x_t B_t,    y_t = <C_t, h_t>.
The torch version works in short chunks of time whose N x D states fit in a core's cache: a chunk's decays are
computed at once, the recurrence then turns them into states in place. The backward pass keeps only the state at the
start of each chunk and recomputes the rest, so memory grows with L / chunk and not with L.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from parrot_dist.kernels import require_agreement, require_triton

logger = logging.getLogger(__name__)

ROW_ELEMENTS = 2**16  # states that advance together on a CPU: enough to hide a call's cost, few enough for the cache
CHUNK_ELEMENTS = 2**19  # states of a chunk, in one core's second-level cache
CUDA_CHUNK = 16  # about the square root of L = 251: the fewest states kept in all for the backward pass


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gate: Tensor, dt_bias: Tensor
) -> Tensor:
    """(scan of x + skip * x) * silu(gate), with steps softplus(dt + dt_bias).

    Args:
        x, dt, gate: (R, L, D), any floating type.
        a: (D, N), negative.
        b, c: (R, L, N).
        skip, dt_bias: (D,).

    Returns:
        (R, L, D); computed and returned in float32 (float64 if `x` is), whatever autocast says.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not torch.is_grad_enabled():  # which a function's `needs_input_grad` ignores, on which states are kept
        x, dt, a, b, c, skip, gate, dt_bias = (one.detach() for one in (x, dt, a, b, c, skip, gate, dt_bias))
    with torch.autocast(x.device.type, enabled=False):
        kernel = _kernel(x.device.type) if dtype == torch.float32 else None
        if kernel is not None:
            return kernel(x, dt, a, b, c, skip, gate, dt_bias)
        x, dt, a, b, c, gate = (tensor.to(dtype) for tensor in (x, dt, a, b, c, gate))
        return _plain_scan(x, dt, a, b, c, skip, gate, dt_bias)


def _plain_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gate: Tensor, dt_bias: Tensor
) -> Tensor:
    dt = F.softplus(dt + dt_bias)
    return torch.addcmul(_scan(dt, dt * x, b, c, a), skip, x) * F.silu(gate)


def _scan(dt: Tensor, v: Tensor, b: Tensor, c: Tensor, a: Tensor) -> Tensor:
    """The recurrence over groups of rows that fit in the cache; shapes as for `selective_scan`."""
    rows = len(dt) if dt.is_cuda else max(1, ROW_ELEMENTS // a.numel())
    rates = a.T.contiguous()
    groups = zip(*(torch.split(tensor.transpose(0, 1), rows, dim=1) for tensor in (dt, v, b, c)), strict=True)
    scan: Callable[..., Tensor] = _Scan.apply
    ys = [scan(*(tensor.contiguous() for tensor in group), rates) for group in groups]
    return torch.cat(ys, dim=1).transpose(0, 1)


@cache
def _kernel(device: str) -> Callable[..., Tensor] | None:
    """What does all of `selective_scan` in float32 on a kind of device, if there is such; says once which and why."""
    if device != "cuda":
        logger.info("selective scan: PyTorch, because the kernels of mamba-ssm and Triton do not run on %s", device)
        return None
    reasons = []
    for name, find in (("mamba-ssm", _find_mamba_ssm), ("Triton", _find_triton)):
        try:
            kernel = find()
        except ImportError as error:
            reasons.append(f"{name} cannot be used ({error})")
        else:
            logger.info("selective scan: %s's CUDA kernel%s", name, "".join(f", as {reason}" for reason in reasons))
            return kernel
    logger.warning("selective scan: PyTorch (slow on CUDA), because %s", "; ".join(reasons))
    return None


def _find_mamba_ssm() -> Callable[..., Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(
        x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gate: Tensor, dt_bias: Tensor
    ) -> Tensor:
        x, dt, b, c, gate = (tensor.float().transpose(1, 2) for tensor in (x, dt, b, c, gate))
        y: Tensor = selective_scan_fn(x, dt, a, b, c, skip, gate, dt_bias, delta_softplus=True)
        return y.transpose(1, 2)

    return scan


def _find_triton() -> Callable[..., Tensor]:
    require_triton()
    from parrot_dist.encoders.triton_scan import triton_scan

    check_kernel(triton_scan, "cuda")
    return triton_scan


@torch.enable_grad()
def check_kernel(kernel: Callable[..., Tensor], device: str) -> None:
    """Compare value and gradients of a kernel with the PyTorch scan, over more than one of any tile.

    Raises:
        ImportError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    R, L, D, N = 2, 20, 33, 3
    shapes = (R, L, D), (R, L, D), (D, N), (R, L, N), (R, L, N), (D,), (R, L, D), (D,)
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[2] = -inputs[2].exp()

    def values(scan: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
        y = scan(*leaves)
        return [y, *torch.autograd.grad(y.square().mean(), leaves)]

    require_agreement(lambda: values(kernel), lambda: values(_plain_scan))


class _Scan(torch.autograd.Function):
    """The recurrence, time first: dt, v = dt * x (L, R, D), b, c (L, R, N), a (N, D) to y (L, R, D)."""

    @staticmethod
    def forward(ctx: Any, dt: Tensor, v: Tensor, b: Tensor, c: Tensor, a: Tensor) -> Tensor:
        y, starts = torch.empty_like(v), []
        chunks, buffer = _chunks(dt, a), _buffer(dt, a)
        state = v.new_zeros(buffer.shape[1:])
        for time in chunks:
            if any(ctx.needs_input_grad):
                starts.append(state)
            states = _decays(dt[time], a, buffer)
            for decay, b_t, v_t in zip(states, b[time, ..., None], v[time, :, None], strict=True):
                state = decay.mul_(state).addcmul_(b_t, v_t)
            y[time] = (c[time, :, None] @ states)[:, :, 0]
            state = state.clone()  # the next chunk overwrites the buffer
        ctx.save_for_backward(dt, v, b, c, a, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        dt, v, b, c, a, *starts = ctx.saved_tensors
        grad_dt, grad_v, grad_b, grad_c = (torch.empty_like(tensor) for tensor in (dt, v, b, c))
        grad_a, carry = torch.zeros_like(a), torch.zeros_like(starts[0])
        buffers = _buffer(dt, a), _buffer(dt, a), _buffer(dt, a, extra=1)
        with torch.autocast(dy.device.type, enabled=False):
            for time, start in reversed(list(zip(_chunks(dt, a), starts, strict=True))):
                decays = _decays(dt[time], a, buffers[0])
                states = _states(start, decays, b[time], v[time], buffers[2])
                grads, carry = _state_grads(carry, decays, c[time], dy[time], buffers[1])
                grad_v[time] = (b[time, :, None] @ grads)[:, :, 0]
                grad_b[time] = (v[time, :, None] @ grads.mT)[:, :, 0]  # ten times as fast as grads @ v on a CPU
                grad_c[time] = (dy[time, :, None] @ states[1:].mT)[:, :, 0]
                exponents = decays.mul_(states[:-1])  # the gradient with respect to dt * A
                grad_a += torch.mul(exponents, dt[time, :, None], out=grads).sum((0, 1))
                grad_dt[time] = exponents.mul_(a).sum(2)
        return grad_dt, grad_v, grad_b, grad_c, grad_a


def _decays(dt: Tensor, a: Tensor, buffer: Tensor) -> Tensor:
    """exp(dt A) (T, R, N, D) of steps (T, R, D); by powers of two, which torch computes four times as fast on a CPU."""
    return torch.mul(dt[:, :, None], a / math.log(2.0), out=buffer[: len(dt)]).exp2_()


def _states(start: Tensor, decays: Tensor, b: Tensor, v: Tensor, buffer: Tensor) -> Tensor:
    """States (T + 1, R, N, D) from `start` (R, N, D) on."""
    states = buffer[: len(decays) + 1]
    states[0] = start
    steps = zip(states[:-1], states[1:], decays, b[..., None], v[:, :, None], strict=True)
    for before, after, decay, b_t, v_t in steps:
        torch.mul(before, decay, out=after).addcmul_(b_t, v_t)
    return states


def _state_grads(carry: Tensor, decays: Tensor, c: Tensor, dy: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Backwards through a chunk, from `carry`, the gradient that its last state gets from the steps after it.

    Returns the gradients of the states (T, R, N, D) and the carry for the chunk before; multiplies `decays` by the
    former, in place.
    """
    grads = buffer[: len(decays)]
    steps = zip(grads, decays, c[..., None], dy[:, :, None], strict=True)
    for grad, decay, c_t, dy_t in reversed(list(steps)):
        torch.addcmul(carry, c_t, dy_t, out=grad)
        carry = decay.mul_(grad)
    return grads, carry.clone()


def _chunk_length(dt: Tensor, a: Tensor) -> int:
    return CUDA_CHUNK if dt.is_cuda else max(1, CHUNK_ELEMENTS // (dt.shape[1] * a.numel()))


def _chunks(dt: Tensor, a: Tensor) -> list[slice]:
    """Consecutive pieces of the time axis of dt (L, R, D)."""
    length = _chunk_length(dt, a)
    return [slice(first, first + length) for first in range(0, len(dt), length)]


def _buffer(dt: Tensor, a: Tensor, extra: int = 0) -> Tensor:
    """Room for the states of a chunk, used again by each: fresh memory would cost more than the arithmetic."""
    return dt.new_empty(min(len(dt), _chunk_length(dt, a)) + extra, dt.shape[1], *a.shape)
