"""The selective scan as fused Triton kernels: nothing to build, since torch for CUDA brings Triton along.

A program takes one row and BLOCK channels through time, CHUNK steps at once, and within a chunk one of the N states
after another. What it works on are (CHUNK, BLOCK) tiles in registers, of which a thread holds whole channels: x, dt and
gate are read coalesced, CHUNK reads of each under way together, and the recurrence needs no other thread. From chunk to
chunk the states go through memory: (R, chunks, N, D) where a backward pass will start from them and compute the rest
again, (R, N, D) where not.

Everything is computed in float32, whatever floating type comes in. Sums have one order, so results repeat bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 16  # about the square root of L = 251: the fewest states kept in all; a tile then takes 16 registers
BLOCK = 32  # one warp with a channel for each thread: 128 bytes in a row, and no barrier between warps
# If the compiler knew that rows are aligned, it would read them in wider pieces and so spread a channel over threads.
UNALIGNED = ("x", "dt", "gate", "y", "dy", "grad_x", "grad_dt", "grad_gate")


def triton_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gate: Tensor, dt_bias: Tensor
) -> Tensor:
    """What `selective_scan` computes: the same shapes, any floating types; (R, L, D) float32."""
    y: Tensor = _Scan.apply(x, dt, a, b, c, skip, gate, dt_bias)  # type: ignore[no-untyped-call]
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, dt, a, b, c, skip, gate, bias = inputs
        (R, L, D), N = x.shape, a.shape[1]
        a, b, c = a.T, b.mT, c.mT  # a program reads along channels or along time
        inputs = tuple(tensor.contiguous() for tensor in (x, dt, a, b, c, skip, gate, bias))
        kept = triton.cdiv(L, CHUNK) if any(ctx.needs_input_grad) else 1
        y, ends = (x.new_empty(shape, dtype=torch.float32) for shape in (x.shape, (R, kept, N, D)))
        _launch(_forward, *inputs, y, ends, L, N, kept)
        ctx.save_for_backward(*inputs, ends)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, dt, a, b, _, _, gate, _, ends = ctx.saved_tensors
        (R, L, D), N = x.shape, len(a)
        grad_x, grad_dt, grad_gate = (torch.empty_like(tensor) for tensor in (x, dt, gate))
        # Of what several programs add to, each has its own part.
        grad_a, carry = (ends.new_zeros(R, N, D) for _ in range(2))
        grad_b, grad_c = (ends.new_empty(triton.cdiv(D, BLOCK), R, N, L) for _ in range(2))
        grad_skip, grad_bias = (ends.new_empty(R, D) for _ in range(2))
        grads = grad_x, grad_dt, grad_a, grad_b, grad_c, grad_skip, grad_gate, grad_bias
        _launch(_backward, *ctx.saved_tensors, dy.contiguous(), carry, *grads, L, N)
        grad_b, grad_c = (part.sum(0).mT.to(b.dtype) for part in (grad_b, grad_c))
        return grad_x, grad_dt, grad_a.sum(0).T, grad_b, grad_c, grad_skip.sum(0), grad_gate, grad_bias.sum(0)


def _launch(kernel: Any, x: Tensor, *arguments: Tensor | int) -> None:
    """Run `kernel` over all rows and blocks of channels of x (R, L, D)."""
    rows, _, channels = x.shape
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[rows, triton.cdiv(channels, BLOCK)](
            x, *arguments, D=channels, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=1, enable_fp_fusion=True
        )


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _forward(
    x: tl.tensor, dt: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, skip: tl.tensor, gate: tl.tensor,
    bias: tl.tensor, y: tl.tensor, ends: tl.tensor, L: int, N: int, kept: int,
    D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row, channel, there_d = _place(D, BLOCK)
    skip_d, bias_d = _load(skip + channel, there_d), _load(bias + channel, there_d)
    for chunk in range(tl.cdiv(L, CHUNK)):
        time, there_t, tile, there = _tile(chunk, row, channel, there_d, L, D, CHUNK)
        x_t = _load(x + tile, there)
        step = _softplus(_load(dt + tile, there) + bias_d[None, :])
        total = x_t * skip_d[None, :]
        for n in range(N):
            column = (row * N + n) * L + time
            end = ends + ((row * kept + tl.minimum(chunk, kept - 1)) * N + n) * D + channel
            start = end - (N * D if kept > 1 else 0)
            decay = tl.exp(step * _load(a + n * D + channel, there_d)[None, :])
            entry = step * x_t * _load(b + column, there_t)[:, None]
            state, _ = _recur(decay, entry, _load(start, there_d & (chunk > 0)), False)
            total += state * _load(c + column, there_t)[:, None]
            tl.store(end, _row(state, CHUNK - 1), there_d)
        gate_t = _load(gate + tile, there)
        tl.store(y + tile, total * gate_t * tl.sigmoid(gate_t), there)
        tl.debug_barrier()  # another thread may read what this one wrote to `ends`


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _backward(
    x: tl.tensor, dt: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, skip: tl.tensor, gate: tl.tensor,
    bias: tl.tensor, ends: tl.tensor, dy: tl.tensor, carry: tl.tensor, grad_x: tl.tensor, grad_dt: tl.tensor,
    grad_a: tl.tensor, grad_b: tl.tensor, grad_c: tl.tensor, grad_skip: tl.tensor, grad_gate: tl.tensor,
    grad_bias: tl.tensor, L: int, N: int, D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row, channel, there_d = _place(D, BLOCK)
    skip_d, bias_d = _load(skip + channel, there_d), _load(bias + channel, there_d)
    skip_sum, bias_sum = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    chunks = tl.cdiv(L, CHUNK)
    for chunk in range(chunks - 1, -1, -1):
        time, there_t, tile, there = _tile(chunk, row, channel, there_d, L, D, CHUNK)
        x_t, gate_t = _load(x + tile, there), _load(gate + tile, there)
        step = _softplus(_load(dt + tile, there) + bias_d[None, :])
        grad_total = _load(dy + tile, there) * gate_t * tl.sigmoid(gate_t)
        total = x_t * skip_d[None, :]
        grad_entry, grad_step = tl.zeros([CHUNK, BLOCK], tl.float32), tl.zeros([CHUNK, BLOCK], tl.float32)
        for n in range(N):
            column, state_d = (row * N + n) * L + time, (row * N + n) * D + channel
            b_t, c_t = _load(b + column, there_t)[:, None], _load(c + column, there_t)[:, None]
            rate = _load(a + n * D + channel, there_d)[None, :]
            decay = tl.exp(step * rate)
            start = ends + ((row * chunks + chunk - 1) * N + n) * D + channel
            state, before = _recur(decay, step * x_t * b_t, _load(start, there_d & (chunk > 0)), False)
            total += state * c_t
            # In reverse it is the same recurrence: a state hands its gradient, decayed, to the state before it.
            own = grad_total * c_t
            handed, got = _recur(decay, decay * own, _load(carry + state_d, there_d), True)
            grad_state, grad_exponent = own + got, handed * before
            grad_entry += grad_state * b_t
            grad_step += grad_exponent * rate
            a_sum = _load(grad_a + state_d, there_d) + tl.sum(grad_exponent * step, 0)
            part = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * N * L + column
            tl.store(carry + state_d, _row(handed, 0), there_d)
            tl.store(grad_a + state_d, a_sum, there_d)
            tl.store(grad_b + part, tl.sum(grad_state * step * x_t, 1), there_t)
            tl.store(grad_c + part, tl.sum(grad_total * state, 1), there_t)
        # Read again: kept, these would take registers from the loop.
        dy_t, gate_t, raw = _load(dy + tile, there), _load(gate + tile, there), _load(dt + tile, there)
        opening = tl.sigmoid(gate_t)
        grad_raw = (grad_step + grad_entry * x_t) * tl.sigmoid(raw + bias_d[None, :])
        tl.store(grad_dt + tile, grad_raw, there)
        tl.store(grad_x + tile, grad_entry * step + grad_total * skip_d[None, :], there)
        tl.store(grad_gate + tile, dy_t * total * opening * (1 + gate_t * (1 - opening)), there)
        bias_sum += tl.sum(grad_raw, 0)
        skip_sum += tl.sum(grad_total * x_t, 0)
        tl.debug_barrier()  # another thread may read what this one wrote to `carry` and `grad_a`
    tl.store(grad_bias + row * D + channel, bias_sum, there_d)
    tl.store(grad_skip + row * D + channel, skip_sum, there_d)


@triton.jit
def _place(D: tl.constexpr, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """This program's row, its channels (BLOCK,), and which of them are there."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(0).to(tl.int64), channel, channel < D


@triton.jit
def _tile(
    chunk: int, row: tl.tensor, channel: tl.tensor, there_d: tl.tensor, L: int, D: tl.constexpr, CHUNK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """A chunk's steps (CHUNK,) and which are there, where its tile lies in (R, L, D), and what of that is there.

    Steps behind the end read zeros, so that nothing comes from them, neither forwards nor backwards.
    """
    time = chunk * CHUNK + tl.arange(0, CHUNK)
    there_t = time < L
    return time, there_t, (row * L + time[:, None]) * D + channel[None, :], there_t[:, None] & there_d[None, :]


@triton.jit
def _load(pointer: tl.tensor, there: tl.tensor) -> tl.tensor:
    return tl.load(pointer, there, 0.0).to(tl.float32)


@triton.jit
def _softplus(z: tl.tensor) -> tl.tensor:
    """log(1 + exp(z)), to the last digits also where exp(z) is far below 1."""
    # Goldberg 1991, theorem 4, for want of a log1p that the interpreter has too: the rounding of the sum cancels out.
    small = tl.exp(-tl.abs(z))
    rounded = 1.0 + small
    log1p = tl.where(rounded == 1.0, small, tl.log(rounded) * small / tl.where(rounded == 1.0, 1.0, rounded - 1.0))
    return tl.maximum(z, 0.0) + log1p


@triton.jit
def _recur(decay: tl.tensor, entry: tl.tensor, start: tl.tensor, reverse: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """States (CHUNK, BLOCK) after and before each step of after = decay * before + entry, `start` before the first."""
    first: tl.constexpr = decay.shape[0] - 1 if reverse else 0
    time = tl.arange(0, decay.shape[0])[:, None]
    before = tl.where(time == first, start[None, :], 0.0)
    others = tl.full(decay.shape, 1.0, tl.float32)
    stretches = (decay, others, decay * before + entry, before)
    _, _, after, before = tl.associative_scan(stretches, 0, _compose, reverse=reverse)
    return after, before


@triton.jit
def _compose(
    decay_1: tl.tensor, others_1: tl.tensor, after_1: tl.tensor, before_1: tl.tensor,
    decay_2: tl.tensor, others_2: tl.tensor, after_2: tl.tensor, before_2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Two stretches of time as one: the decays of all its steps and of all but the last, the states after and before
    the last. In a thread of its own this costs two multiply-adds a step: the second stretch is always a single one."""
    return decay_1 * decay_2, decay_1 * others_2, decay_2 * after_1 + after_2, others_2 * after_1 + before_2


@triton.jit
def _row(tile: tl.tensor, at: tl.constexpr) -> tl.tensor:
    """Row `at` of a tile, (BLOCK,)."""
    return tl.sum(tl.where(tl.arange(0, tile.shape[0])[:, None] == at, tile, 0.0), 0)
