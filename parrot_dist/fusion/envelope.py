"""The gradient of a converged plan, from the plan alone.

By the envelope theorem the plan is the gradient of the entropic transport cost with respect to the costs C. So a plan
that is held fixed gives the exact gradient of that cost, but not of anything else that is made of the plan, as the
transported rows are: for these the plan's own derivative is needed, the Hessian of the entropic cost. It follows from
the conditions on the marginals by implicit differentiation (Luise et al. 2018, arXiv 1805.11897, for the cost's
Hessian; Cuturi et al. 2020, arXiv 2002.03229, for the plan): with plan G of marginals a and b, and H the gradient of
the loss with respect to G,

    [diag(a)  G    ] [alpha]   [(G * H) 1  ]
    [G^T   diag(b) ] [beta ] = [(G * H)^T 1],     gradient with respect to C_ij: G_ij (alpha_i + beta_j - H_ij) / eps.

What is added to all of alpha and taken from all of beta changes nothing, as with the potentials of the plan itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of the diagonal: where entropy is so small that the plan is a permutation, the equations have no single solution.
RIDGE = 1e-12


def with_envelope_gradient(plan: Tensor, C: Tensor, epsilon: float) -> Tensor:
    """`plan` (..., n, m) as a function of the costs C (..., n, m), with the gradient that it has once it is converged.

    The marginals are taken to be those that it has: a plan stopped early solves the problem for these. In float64.
    """
    differentiable: Tensor = _Envelope.apply(plan, C, epsilon)  # type: ignore[no-untyped-call]
    return differentiable


class _Envelope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Tensor, C: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(plan)
        ctx.epsilon, ctx.dtype = epsilon, C.dtype
        return plan.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        G, H = ctx.saved_tensors[0].double(), gradient.double()
        weighted = G * H
        b = G.sum(-2)
        # Padding has no mass: any number but 0 will do for it.
        a = torch.where(G.sum(-1) > 0, G.sum(-1), 1)[..., None]
        right = weighted.sum(-1)[..., None]
        left = torch.diag_embed(torch.where(b > 0, b * (1 + RIDGE), 1))
        # The equations for beta alone; the last term asks for a beta of mean 0 under b, as one may.
        left = left - G.mT @ (G / a) + b[..., None] * b[..., None, :]
        beta = torch.linalg.solve(left, weighted.sum(-2)[..., None] - G.mT @ (right / a))
        alpha = (right - G @ beta) / a
        return None, (G * (alpha + beta.mT - H) / ctx.epsilon).to(ctx.dtype), None
