"""Entropic optimal transport between the rows of two matrices (Cuturi 2013), as the transport branch needs it.

The iteration is `ot.sinkhorn`'s (POT), step for step, so the two agree also before convergence. What differs is the
arithmetic: scaling is done in the narrowest float type in which nothing can over- or underflow, and in the log domain
where none is wide enough.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Positions are written into checkpoints (`Reference.to_tensors`): append only.
COSTS = ("euclidean", "cosine", "squared")

# Below this max(C) / eps, float32 kernels keep six digits of the plan; the paper's eps = 0.05 gives 20.
FLOAT32_EXPONENT = 25.0


class Transport(NamedTuple):
    """A plan and its dual potentials: plan = exp((f_i + g_j - C_ij) / eps)."""

    plan: Tensor
    """(n, m), rows sum to 1 / n exactly, columns to 1 / m up to the marginal error."""
    f: Tensor
    """(n,), potentials of the rows, in the units of the cost."""
    g: Tensor
    """(m,), potentials of the columns, in the units of the cost."""
    marginal_error: Tensor
    """(), the L1 distance of the column sums from uniform: 0 is converged, 2 the worst there is."""


def pairwise_cost(P: Tensor, Q: Tensor, kind: str) -> Tensor:
    """The raw cost (n, m) of moving each row of P (n, d) to each row of Q (m, d); `kind` is one of `COSTS`."""
    if kind == "cosine":
        return (1 - F.normalize(P, dim=1) @ F.normalize(Q, dim=1).T).clamp_min(0)
    # The matrix-product form of the distance cancels: near rows would come out up to 1e-3 apart in float32.
    distance = torch.cdist(P, Q, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "euclidean":
        return distance
    if kind == "squared":
        return distance.square()
    raise ValueError(f"cost {kind!r}: one of {', '.join(COSTS)}")


def cost_scale(cost: Tensor) -> Tensor:
    """What costs (n, m) are divided by to lie in [0, 1]: their maximum, or 1 where all are zero; a scalar."""
    largest = cost.max()
    return torch.where(largest > 0, largest, 1)


def cost_matrix(P: Tensor, Q: Tensor, kind: str) -> Tensor:
    """`pairwise_cost` divided by its maximum: (n, m) in [0, 1], all zero where every row is the same."""
    cost = pairwise_cost(P, Q, kind)
    return cost / cost_scale(cost)


@torch.no_grad()
def sinkhorn(C: Tensor, epsilon: float, iterations: int, bound: float | None = None) -> Transport:
    """The plan between uniform marginals for the cost C (n, m) after exactly `iterations` iterations.

    No gradient flows through the plan (the paper's choice), and autocast does not reach in here.

    Args:
        C: (n, m) costs, not negative; float64 stays float64, everything else is computed in float32 or wider and
            returned as float32.
        epsilon: entropy regularisation, in the units of C.
        iterations: updates of both scalings, at least 1.
        bound: an upper bound of C where it is known; looking for it would make a GPU wait.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, not {epsilon} and {iterations}")
    dtype = torch.promote_types(C.dtype, torch.float32)
    exponent = (float(C.max()) if bound is None else bound) / epsilon
    narrow = dtype == torch.float32 and exponent <= FLOAT32_EXPONENT
    working = torch.float32 if narrow else torch.float64
    # From uniform scalings, with m = max(C) / eps, neither scaling ever leaves exp(-2 m) to exp(2 m): the iteration is
    # monotone and homogeneous, so it never moves away from its fixed point, whose entries span a factor of exp(m).
    fits = 2 * exponent < 0.9 * math.log(torch.finfo(working).max)
    with torch.autocast(C.device.type, enabled=False):
        log_kernel = C.to(working) / -epsilon
        plan, log_u, log_v = (_scale if fits else _scale_log)(log_kernel, iterations)
        error = (plan.sum(0) - 1 / C.shape[1]).abs().sum()
    return Transport(plan.to(dtype), (epsilon * log_u).to(dtype), (epsilon * log_v).to(dtype), error.to(dtype))


def _scale(log_kernel: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    n, m = log_kernel.shape
    kernel = log_kernel.exp_()
    transposed = kernel.T
    u = kernel.new_full((n,), 1 / n)
    for _ in range(iterations):
        v = torch.mv(transposed, u).mul_(m).reciprocal_()
        u = torch.mv(kernel, v).mul_(n).reciprocal_()
    return kernel.mul_(u[:, None]).mul_(v), u.log(), v.log()


def _scale_log(log_kernel: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    n, m = log_kernel.shape
    log_u = log_kernel.new_full((n,), -math.log(n))
    for _ in range(iterations):
        log_v = -math.log(m) - torch.logsumexp(log_kernel + log_u[:, None], 0)
        log_u = -math.log(n) - torch.logsumexp(log_kernel + log_v, 1)
    return (log_kernel + log_u[:, None]).add_(log_v).exp_(), log_u, log_v
