"""A prediction that stands alone: transport against a fixed reference set instead of the rest of the batch.

The entropic map (Pooladian & Niles-Weed 2021, arXiv 2109.12004) extends a converged plan to rows it was not made of:
the barycentric projection of a new row is a softmax over the reference rows of (potential - cost) / eps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parrot_dist.fusion.sinkhorn import COSTS, cost_scale, pairwise_cost

logger = logging.getLogger(__name__)

TOLERANCE = 1e-6  # of the marginals; rounding the potentials to float32 costs about as much
MOST_ITERATIONS = 20_000  # 3 s on a core for 512 rows
BLOCK = 100  # iterations between two looks at the marginals
LARGE_ERROR = 1e-3  # of the marginals: a person should know
LARGEST_ENTROPY = 0.05  # from here on, smaller ones are come to by halves
SMALLEST_KERNEL = 1e-138  # scalings stay between its square and one over that (see `sinkhorn`), which float64 holds


@dataclass(frozen=True)
class Reference:
    """The rows, potentials and cost scale that place a single utterance among those of a reference set."""

    R_p: Tensor
    """(n, 120) rows of the Mamba branch."""
    R_q: Tensor
    """(n, 120) rows of the attention branch."""
    f: Tensor
    """(n,) potentials of R_p, in units of the normalised cost."""
    g: Tensor
    """(n,) potentials of R_q, in units of the normalised cost."""
    scale: Tensor
    """(), the largest cost within the reference set, by which every cost is divided."""
    epsilon: float
    cost: str

    @staticmethod
    def fit(R_p: Tensor, R_q: Tensor, epsilon: float, cost: str) -> Reference:
        """The reference of rows R_p and R_q (n, 120), detached.

        Unlike training's 50 iterations, these go on to convergence: the map into R_p uses the row potentials, and the
        map into R_q the column potentials, so both marginals have to hold. Solved in float64, once per checkpoint.
        Says so in the log where they do not converge.
        """
        R_p, R_q = R_p.detach(), R_q.detach()
        raw = pairwise_cost(R_p.double(), R_q.double(), cost)
        scale = cost_scale(raw)
        f, g = converged_potentials(raw / scale, epsilon)
        fitted = Reference(R_p, R_q, f.to(R_p.dtype), g.to(R_p.dtype), scale.to(R_p.dtype), epsilon, cost)
        if not (error := fitted.marginal_error) <= LARGE_ERROR:  # also where it is no number
            logger.warning(
                "the plan between the reference rows is %.0e off its marginals, and what is predicted for single "
                "utterances about as much: fusion.epsilon=%g is too small for these rows",
                error,
                epsilon,
            )
        return fitted

    @property
    def marginal_error(self) -> float:
        """How far the plan between the reference rows is from its marginals, as `Transport.marginal_error`; the larger
        of rows and columns. What a new row is moved to is off by about as much.
        """
        cost = pairwise_cost(self.R_p.double(), self.R_q.double(), self.cost) / self.scale
        plan = ((self.f[:, None] + self.g - cost) / self.epsilon).exp()
        return max(float((plan.sum(axis) - 1 / plan.shape[1 - axis]).abs().sum()) for axis in (0, 1))

    def transport(self, R_p: Tensor, R_q: Tensor) -> tuple[Tensor, Tensor]:
        """(p_to_q, q_to_p), each (B, 120), for new rows R_p and R_q (B, 120): what the plan does for rows it holds."""
        with torch.autocast(R_p.device.type, enabled=False):
            return self._project(R_q, self.R_p, self.f), self._project(R_p, self.R_q, self.g)

    def _project(self, new: Tensor, rows: Tensor, potentials: Tensor) -> Tensor:
        cost = pairwise_cost(new, rows, self.cost) / self.scale
        return torch.softmax((potentials - cost) / self.epsilon, dim=1) @ rows

    def to(self, device: torch.device | str) -> Reference:
        """This reference with its tensors on `device`."""
        return self.from_tensors({name: tensor.to(device) for name, tensor in self.to_tensors().items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, fit for a safetensors file."""
        return {
            "R_p": self.R_p,
            "R_q": self.R_q,
            "f": self.f,
            "g": self.g,
            "scale": self.scale,
            "epsilon": torch.tensor(self.epsilon, dtype=torch.float64),
            "cost": torch.tensor(COSTS.index(self.cost)),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Reference:
        """The inverse of `to_tensors`.

        Raises:
            KeyError: a tensor is missing.
        """
        parts = {name: tensors[name] for name in ("R_p", "R_q", "f", "g", "scale")}
        return Reference(**parts, epsilon=float(tensors["epsilon"]), cost=COSTS[int(tensors["cost"])])


def converged_potentials(C: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The potentials f and g (n,) of the plan between uniform marginals for the costs C (n, n), in [0, 1], float64.

    Rows in clusters of unequal sizes can take ten thousands of iterations, the more the smaller the entropy. So small
    entropies are come to by halves, each from the potentials of the one before. What a block of iterations scales by
    goes into the potentials (Schmitzer 2019, arXiv 1610.06519), so the next one's kernel is the plan so far, which
    does not underflow where it matters.
    """
    n = len(C)
    g = C.new_zeros(n)
    blocks = MOST_ITERATIONS // BLOCK
    for entropy in _halves(epsilon):
        # On the way it is enough that every column has half of its mass.
        tolerance = TOLERANCE if entropy == epsilon else 0.5 / n
        while True:
            f = -entropy * (torch.logsumexp((g - C) / entropy, 1) + math.log(n))
            plan = ((f[:, None] + g - C) / entropy).exp()
            error = (plan.sum(0) - 1 / n).abs().sum()
            if blocks == 0 or error <= tolerance or not error.isfinite():
                break
            g = g + entropy * _column_scaling(plan.clamp_min_(SMALLEST_KERNEL)).log()
            blocks -= 1
    return f, g


def _halves(epsilon: float) -> list[float]:
    """Entropies from LARGEST_ENTROPY or more down to `epsilon`, each half of the one before; a larger one alone."""
    entropies = [epsilon]
    while entropies[0] < LARGEST_ENTROPY:
        entropies.insert(0, 2 * entropies[0])
    return entropies


def _column_scaling(kernel: Tensor) -> Tensor:
    """What BLOCK iterations scale the columns of `kernel` (n, n) by, (n,)."""
    n = len(kernel)
    u, transposed = kernel.new_ones(n), kernel.T
    for _ in range(BLOCK):
        v = 1 / n / torch.mv(transposed, u)
        u = 1 / n / torch.mv(kernel, v)
    return v


def pick_reference(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Sorted indices of `count` samples, as evenly over the classes of labels (n,) as these allow; all if n is less."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = labels[order] == label
        turn[members] = np.arange(members.sum())
    # One sample of every class in each turn, until `count` are there: small classes simply run out early.
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])
