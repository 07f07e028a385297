"""A prediction that stands alone: transport against a fixed reference set instead of the rest of the batch.

The entropic map (Pooladian & Niles-Weed 2021, arXiv 2109.12004) extends a converged plan to rows it was not made of:
the barycentric projection of a new row is a softmax over the reference rows of (potential - cost) / eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parrot_dist.fusion.sinkhorn import COSTS, cost_scale, pairwise_cost, sinkhorn


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
    def fit(R_p: Tensor, R_q: Tensor, epsilon: float, cost: str, iterations: int = 1000) -> Reference:
        """The reference of rows R_p and R_q (n, 120), detached.

        Unlike training's 50 iterations, these go on to convergence: the map into R_p uses the row potentials, and the
        map into R_q the column potentials, so both marginals have to hold. Solved in float64, once per checkpoint.
        """
        R_p, R_q = R_p.detach(), R_q.detach()
        raw = pairwise_cost(R_p.double(), R_q.double(), cost)
        scale = cost_scale(raw)
        solved = sinkhorn(raw / scale, epsilon, iterations, bound=1.0)
        return Reference(R_p, R_q, solved.f.to(R_p.dtype), solved.g.to(R_p.dtype), scale.to(R_p.dtype), epsilon, cost)

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


def pick_reference(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Sorted indices of `count` samples, as evenly over the classes of labels (n,) as these allow; all if n is less."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = labels[order] == label
        turn[members] = np.arange(members.sum())
    # One sample of every class in each turn, until `count` are there: small classes simply run out early.
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])
