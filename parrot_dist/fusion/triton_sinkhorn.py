"""All Sinkhorn iterations of small problems in one launch of a Triton kernel, where each would be four launches.

A program takes one problem, whose kernel matrix stays in registers from the first iteration to the last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_BYTES = 2**16  # of a matrix, a quarter of the registers of a multiprocessor: 128 x 128 in float32
WARP_ELEMENTS = 256  # eight for each thread: more would wait for arithmetic, fewer for the other warps
MOST_WARPS = 16


def fits(kernel: Tensor) -> bool:
    """Whether matrices (..., n, m) are small enough, once their sides are filled up to powers of two."""
    return _tile(kernel)[0] * _tile(kernel)[1] * kernel.element_size() <= TILE_BYTES


def scale(kernel: Tensor, a: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale kernel = exp(-C / eps) (..., n, m), float32 or float64, to the plan between a (..., n) and b (..., m).

    Returns the plan, which takes the place of the kernel, and the logarithms of both scalings, (..., n) and (..., m).
    """
    *problems, n, m = kernel.shape
    N, M = _tile(kernel)
    a, b = a.expand(*problems, n).contiguous(), b.expand(*problems, m).contiguous()
    log_u, log_v = torch.empty_like(a), torch.empty_like(b)
    warps = max(1, min(MOST_WARPS, N * M // WARP_ELEMENTS))
    plan = kernel.contiguous()
    with torch.cuda.device_of(plan):  # type: ignore[no-untyped-call]
        _scale[(plan[..., 0, 0].numel(),)](
            plan, a, b, log_u, log_v, n, m, iterations, N=N, M=M, num_warps=warps, enable_fp_fusion=True
        )
    return plan, log_u, log_v


def _tile(kernel: Tensor) -> tuple[int, int]:
    n, m = kernel.shape[-2:]
    return triton.next_power_of_2(n), triton.next_power_of_2(m)


@triton.jit
def _scale(
    plan: tl.tensor, a: tl.tensor, b: tl.tensor, log_u: tl.tensor, log_v: tl.tensor,
    n: int, m: int, iterations: int, N: tl.constexpr, M: tl.constexpr,
) -> None:  # fmt: skip
    problem = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, N), tl.arange(0, M)
    there_i, there_j = row < n, column < m
    tile, there = problem * n * m + row[:, None] * m + column[None, :], there_i[:, None] & there_j[None, :]
    a_i, b_j = tl.load(a + problem * n + row, there_i, 0.0), tl.load(b + problem * m + column, there_j, 0.0)
    # What fills the tile up has no mass, and a kernel of 1, since 0 would have 0 divided by 0.
    kernel = tl.load(plan + tile, there, 1.0)
    u, v = a_i, b_j
    for _ in range(iterations):
        v = b_j / tl.sum(kernel * u[:, None], 0)
        u = a_i / tl.sum(kernel * v[None, :], 1)
    tl.store(plan + tile, kernel * u[:, None] * v[None, :], there)
    tl.store(log_u + problem * n + row, tl.log(u), there_i)
    tl.store(log_v + problem * m + column, tl.log(v), there_j)
