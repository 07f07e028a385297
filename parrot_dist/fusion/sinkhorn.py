"""Entropic optimal transport between the rows of two matrices (Cuturi 2013), as the transport branch needs it.

The iteration is `ot.sinkhorn`'s (POT), step for step, so the two agree also before convergence. What differs is the
arithmetic: scaling is done in the narrowest float type in which nothing can over- or underflow, and in the log domain
where none is wide enough. On CUDA all iterations of a scaling that fits into registers are one launch.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parrot_dist.fusion.envelope import with_envelope_gradient
from parrot_dist.kernels import require_agreement, require_triton

logger = logging.getLogger(__name__)

# Positions are written into checkpoints (`Reference.to_tensors`): append only.
COSTS = ("euclidean", "cosine", "squared")
PLAN_GRADIENTS = ("none", "envelope", "unrolled")

# Below this max(C) / eps, float32 kernels keep six digits of the plan; the paper's eps = 0.05 gives 20.
FLOAT32_EXPONENT = 25.0


class Transport(NamedTuple):
    """A plan and its dual potentials: plan = exp((f_i + g_j - C_ij) / eps).

    Of several problems at once, all of it has their leading axes. What is padded has no mass and a potential of -inf.
    """

    plan: Tensor
    """(n, m), rows sum to 1 / n exactly, columns to 1 / m up to the marginal error."""
    f: Tensor
    """(n,), potentials of the rows, in the units of the cost."""
    g: Tensor
    """(m,), potentials of the columns, in the units of the cost."""
    marginal_error: Tensor
    """(), the L1 distance of the column sums from uniform: 0 is converged, 2 the worst there is."""


def pairwise_cost(P: Tensor, Q: Tensor, kind: str) -> Tensor:
    """The raw cost (..., n, m) of moving rows of P (..., n, d) to rows of Q (..., m, d); `kind` is one of `COSTS`."""
    if kind == "cosine":
        return (1 - F.normalize(P, dim=-1) @ F.normalize(Q, dim=-1).mT).clamp_min(0)
    # The matrix-product form of the distance cancels: near rows would come out up to 1e-3 apart in float32.
    distance = torch.cdist(P, Q, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "euclidean":
        return distance
    if kind == "squared":
        return distance.square()
    raise ValueError(f"cost {kind!r}: one of {', '.join(COSTS)}")


def cost_scale(cost: Tensor) -> Tensor:
    """What costs (..., n, m) are divided by to lie in [0, 1]: their maximum (...), or 1 where all are zero."""
    largest = cost.amax((-2, -1))
    return torch.where(largest > 0, largest, 1)


def cost_matrix(P: Tensor, Q: Tensor, kind: str, there: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`pairwise_cost` divided by its maximum: (..., n, m) in [0, 1], all zero where every row is the same.

    `there` says which rows of P and of Q are not padding, bool (..., n) and (..., m); what is padded costs nothing.
    """
    cost = pairwise_cost(P, Q, kind)
    if there is not None:
        cost = cost * (there[0][..., None] & there[1][..., None, :])
    return cost / cost_scale(cost)[..., None, None]


def sinkhorn(
    C: Tensor,
    epsilon: float,
    iterations: int,
    bound: float | None = None,
    there: tuple[Tensor, Tensor] | None = None,
    gradient: str = "none",
) -> Transport:
    """The plan between uniform marginals for the cost C (..., n, m) after exactly `iterations` iterations.

    Autocast does not reach in here.

    Args:
        C: (..., n, m) costs, not negative; float64 stays float64, everything else is computed in float32 or wider and
            returned as float32.
        epsilon: entropy regularisation, in the units of C.
        iterations: updates of both scalings, at least 1.
        bound: an upper bound of C where it is known; looking for it would make a GPU wait.
        there: which rows and columns are not padding, bool (..., n) and (..., m), of each problem at least one: its
            solution is that of what is there. C must be finite also where it is padded.
        gradient: how the plan depends on C for autograd: "none" not at all (the paper's choice), "unrolled" as its
            iterations do, each of which is remembered, "envelope" as a converged plan does, see `envelope`. Only the
            plan has a gradient.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, not {epsilon} and {iterations}")
    dtype = torch.promote_types(C.dtype, torch.float32)
    exponent = (float(C.detach().max()) if bound is None else bound) / epsilon
    narrow = dtype == torch.float32 and exponent <= FLOAT32_EXPONENT
    working = torch.float32 if narrow else torch.float64
    # From uniform scalings, with m = max(C) / eps, neither scaling ever leaves exp(-2 m) to exp(2 m): the iteration is
    # monotone and homogeneous, so it never moves away from its fixed point, whose entries span a factor of exp(m).
    fits = 2 * exponent < 0.9 * math.log(torch.finfo(working).max)
    # Derivatives of scalings hold their squares, which do not fit.
    unrolled = gradient == "unrolled" and torch.is_grad_enabled()
    with torch.autocast(C.device.type, enabled=False), torch.set_grad_enabled(unrolled):
        log_kernel = C.to(working) / -epsilon
        a, b = (_uniform(log_kernel, axis, None if there is None else there[axis]) for axis in (0, 1))
        plan, log_u, log_v = (_scale if fits and not unrolled else _scale_log)(log_kernel, a, b, iterations)
        plan = plan.to(dtype)
        f, g = (epsilon * log_u.detach()).to(dtype), (epsilon * log_v.detach()).to(dtype)
        error = (plan.detach().sum(-2) - b).abs().sum(-1).to(dtype)
    return Transport(with_envelope_gradient(plan, C, epsilon) if gradient == "envelope" else plan, f, g, error)


def _uniform(C: Tensor, axis: int, there: Tensor | None) -> Tensor:
    """Equal masses over the rows (axis 0) or columns (1) of C that are there, none on the others."""
    size = C.shape[axis - 2]
    return C.new_full((size,), 1 / size) if there is None else there.to(C) / there.sum(-1, keepdim=True)


def _scale(log_kernel: Tensor, a: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    kernel = log_kernel.exp_()
    if kernel.is_cuda and (fused := _fused()) and fused.fits(kernel):
        scaled: tuple[Tensor, Tensor, Tensor] = fused.scale(kernel, a, b, iterations)
        return scaled
    return _scale_stepwise(kernel, a, b, iterations)


def _scale_stepwise(kernel: Tensor, a: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    transposed = kernel.mT
    u = a
    for _ in range(iterations):
        v = b / _times(transposed, u)
        u = a / _times(kernel, v)
    return kernel.mul_(u[..., None]).mul_(v[..., None, :]), u.log(), v.log()


@cache
def _fused() -> ModuleType | None:
    """The scaling in one launch, where Triton can be used; says once where it cannot."""
    kernel = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0)).cuda() + 0.1
    a, b = _uniform(kernel, 0, None), _uniform(kernel, 1, None)
    try:
        require_triton()
        from parrot_dist.fusion import triton_sinkhorn

        require_agreement(
            lambda: triton_sinkhorn.scale(kernel.clone(), a, b, 9), lambda: _scale_stepwise(kernel.clone(), a, b, 9)
        )
    except ImportError as error:
        logger.warning("transport: one launch for every iteration, because Triton cannot be used (%s)", error)
        return None
    return triton_sinkhorn


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.mv(matrix, vector) if matrix.ndim == 2 else (matrix @ vector[..., None])[..., 0]


def _scale_log(log_kernel: Tensor, a: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    log_a, log_b = a.log(), b.log()
    log_u = log_a
    for _ in range(iterations):
        log_v = log_b - torch.logsumexp(log_kernel + log_u[..., None], -2)
        log_u = log_a - torch.logsumexp(log_kernel + log_v[..., None, :], -1)
    return (log_kernel + log_u[..., None]).add_(log_v[..., None, :]).exp_(), log_u, log_v
