"""The classification heads: PARROT, its ablations, concatenation, and the single-encoder baselines of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parrot_dist.fusion.dropout import keyed_dropout
from parrot_dist.fusion.frames import average, cut, frame_rows, is_there, transported_frames
from parrot_dist.fusion.gather import gather_rows, local_slice
from parrot_dist.fusion.pool import pool_pairs
from parrot_dist.fusion.reference import Reference
from parrot_dist.fusion.sinkhorn import COSTS, PLAN_GRADIENTS, Transport, cost_matrix, sinkhorn
from parrot_dist.schema import setting

FILTERS = (64, 128)
ROW = 120
HIDDEN = 128


@dataclass(kw_only=True)
class HeadSettings:
    """What can be set about a head; the defaults are the paper's. A head ignores what does not concern it."""

    branch: str = setting("mamba", "the encoder that fcn and cnn hear", choices=("mamba", "attention"))
    epsilon: float = setting(
        0.05, "entropy of the transport plan, in units of the cost divided by its maximum", above=0
    )
    iterations: int = setting(50, "Sinkhorn iterations", above=0)
    dropout: float = setting(0.3, "share of the head's hidden units that a step leaves out", least=0, below=1)
    cost: str = setting("euclidean", "cost of the transport between two embeddings", choices=COSTS)
    plan_gradient: str = setting(
        "none",
        "gradient through the plan: none (the paper's), envelope: that of a converged plan, or unrolled: that of its "
        "iterations",
        choices=PLAN_GRADIENTS,
    )
    over: str = setting(
        "batch",
        "transport between the utterances of a batch (the paper's), or between the frames of each utterance",
        choices=("batch", "frames"),
    )
    transport_scope: str = setting(
        "global",
        "what the plan spans: the global batch, or each worker's part of it, for comparison",
        choices=("global", "local"),
    )


def wide(x: Tensor) -> Tensor:
    """x in float32 at least: autocast leaves half precision, which transport and the loss cannot use."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ConvBlocks(nn.Module):
    """An embedding (B, dim) read as a one-channel sequence, through two convolution blocks, flat: (B, width)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4:
            raise ValueError(f"embedding of size {dim}: two halvings by max-pooling need at least 4")
        self.conv0 = nn.Conv1d(1, FILTERS[0], kernel_size=3, padding=1)
        self.conv1 = nn.Conv1d(FILTERS[0], FILTERS[1], kernel_size=3, padding=1)
        self.width = FILTERS[1] * (dim // 2 // 2)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the ReLU gives the paper's ReLU before pooling, both being monotone, on half the numbers.
        x = pool_pairs(self.conv0(x[:, None])).relu()
        x = pool_pairs(self.conv1(x)).relu()
        return x.flatten(1)


class Branch(ConvBlocks):
    """An embedding (B, dim) -> a row (B, 120) of the space in which the two branches meet."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.proj = nn.Linear(self.width, ROW)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.proj(super().forward(x))
        return rows


class Head(nn.Module):
    """Two embeddings -> features -> dense 128, ReLU, dropout -> logits. Subclasses say what the features are.

    What a configuration names is a `HeadType`. A head's state is its parameters, all of them trained: checkpoints
    keep nothing else, and the one randomness is that dropout.
    """

    single_branch = False
    """Whether it hears the embedding of `settings.branch` only; the other has no width, its encoder is not loaded."""
    needs_reference = False
    """Whether `predict_alone` wants a `Reference`: only heads that transport over the batch do, see `PairHead`."""
    over_frames = False
    """Whether it takes frames (B, T, D + 1), see `fusion.frames`, wherever else embeddings (B, D) are said."""

    def __init__(self, width: int, num_classes: int, settings: HeadSettings) -> None:
        super().__init__()
        self.settings = settings
        self.dense = nn.Linear(width, HIDDEN)
        self.out = nn.Linear(HIDDEN, num_classes)
        self.marginal_error: Tensor | None = None
        """How far the latest forward pass's plan was from its marginals, a scalar; None without a plan."""

    def features(self, mamba: Tensor, attention: Tensor, sizes: Sequence[int] | None) -> Tensor:
        """(B, width) from the embeddings of this rank's rows, and the other ranks' where the head couples rows."""
        raise NotImplementedError

    def features_alone(self, mamba: Tensor, attention: Tensor, reference: Reference | None) -> Tensor:
        """(B, width) such that no row depends on another."""
        return self.features(mamba, attention, None)

    def forward(
        self, mamba: Tensor, attention: Tensor, keys: Tensor | None = None, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """Logits (B, C), float32 or wider, of the rows of this rank.

        Args:
            mamba: (B, Dm) embeddings of the Mamba branch.
            attention: (B, Da) embeddings of the attention branch.
            keys: (B,) int64, what the dropout mask of each row is drawn from (`row_keys`); None draws at random.
            sizes: the number of rows of every rank, in which case every rank has to make this call; None couples
                nothing but the rows given.

        Raises:
            ValueError: `sizes` does not fit.
        """
        return self.classify(self.features(mamba, attention, sizes), keys)

    @torch.no_grad()
    def predict_alone(self, mamba: Tensor, attention: Tensor, reference: Reference | None) -> Tensor:
        """Logits (B, C), each row as if it were the only one: bit for bit the same in any batch and order.

        Rows are computed one at a time, since matrix products of different sizes round differently, and from memory
        of their own, since MKL promises equal bits for equally aligned arrays only. Call it in evaluation mode.

        Raises:
            ValueError: the head transports and there is no reference.
        """
        if self.needs_reference and reference is None:
            raise ValueError("a head with a transport branch needs a reference to predict rows on their own")
        singles = ((mamba[i : i + 1].clone(), attention[i : i + 1].clone()) for i in range(len(mamba)))
        return torch.cat([self.classify(self.features_alone(m, a, reference), None) for m, a in singles])

    def classify(self, features: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits (B, C), float32 or wider, from `features` (B, width); `keys` as for `forward`."""
        hidden = self.dense(features).relu()
        if self.training and self.settings.dropout > 0:
            rate = self.settings.dropout
            hidden = F.dropout(hidden, rate) if keys is None else keyed_dropout(hidden, rate, keys)
        return wide(self.out(hidden))


class HeadType(Protocol):
    """A subclass of `Head`, made from the widths of the embeddings, the number of classes and the settings."""

    single_branch: bool

    def __call__(self, mamba_dim: int, attention_dim: int, num_classes: int, settings: HeadSettings, /) -> Head:
        """The head with weights drawn from torch's global generator."""


class Fcn(Head):
    """The paper's FCN: dense on the embedding of one encoder."""

    single_branch = True
    convolve = False

    def __init__(self, mamba_dim: int, attention_dim: int, num_classes: int, settings: HeadSettings) -> None:
        dim = mamba_dim if settings.branch == "mamba" else attention_dim
        blocks = ConvBlocks(dim) if self.convolve else None
        super().__init__(blocks.width if blocks else dim, num_classes, settings)
        self.blocks = blocks

    def features(self, mamba: Tensor, attention: Tensor, sizes: Sequence[int] | None) -> Tensor:
        x = mamba if self.settings.branch == "mamba" else attention
        return x if self.blocks is None else self.blocks(x)


class Cnn(Fcn):
    """The paper's CNN: two convolution blocks before the dense layers."""

    convolve = True


class PairHead(Head):
    """A fusion of two rows: their Hadamard product, what transport makes of them, or else [R_p, R_q] as they are."""

    hadamard = False
    """Whether the product is among the features."""
    transports = False
    """Whether transported rows are."""

    def __init__(self, mamba_dim: int, attention_dim: int, num_classes: int, settings: HeadSettings) -> None:
        rows = 1 * self.hadamard + 4 * self.transports or 2
        super().__init__(rows * ROW, num_classes, settings)
        self.over_frames = self.transports and settings.over == "frames"
        self.needs_reference = self.transports and not self.over_frames
        self.mamba = Branch(mamba_dim)
        self.attention = Branch(attention_dim)

    def rows(self, mamba: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """(R_p, R_q), each (B, 120), float32 or wider."""
        return wide(self.mamba(mamba)), wide(self.attention(attention))

    def solve(self, R_p: Tensor, R_q: Tensor, there: tuple[Tensor, Tensor] | None = None) -> Transport:
        """The plan between R_p (..., n, 120) and R_q (..., m, 120), of which those count that are `there`."""
        settings = self.settings
        if settings.plan_gradient == "none":
            R_p, R_q = R_p.detach(), R_q.detach()
        cost = cost_matrix(R_p, R_q, settings.cost, there)
        return sinkhorn(cost, settings.epsilon, settings.iterations, 1.0, there, settings.plan_gradient)

    def features(self, mamba: Tensor, attention: Tensor, sizes: Sequence[int] | None) -> Tensor:
        if self.over_frames:
            return self._features_of_frames(mamba, attention)
        R_p, R_q = self.rows(mamba, attention)
        return self._fuse(R_p * R_q, R_p, R_q, self._couple(R_p, R_q, sizes) if self.transports else None)

    def features_alone(self, mamba: Tensor, attention: Tensor, reference: Reference | None) -> Tensor:
        if self.over_frames:  # one utterance, whose padding would change how sums are rounded
            return self._features_of_frames(cut(mamba), cut(attention))
        R_p, R_q = self.rows(mamba, attention)
        transported = reference.transport(R_p, R_q) if reference is not None and self.transports else None
        return self._fuse(R_p * R_q, R_p, R_q, transported)

    def _features_of_frames(self, mamba: Tensor, attention: Tensor) -> Tensor:
        """(B, width) as by `transported_frames`; no utterance sees another."""
        there = is_there(mamba), is_there(attention)
        R_p, R_q = wide(frame_rows(self.mamba, mamba)), wide(frame_rows(self.attention, attention))
        with torch.autocast(R_p.device.type, enabled=False):
            solved = self.solve(R_p, R_q, there)
            if len(R_p):
                self.marginal_error = solved.marginal_error.max()
            product, p_to_q, q_to_p = transported_frames(R_p, R_q, there, solved.plan)
            return self._fuse(product, average(R_p, there[0]), average(R_q, there[1]), (p_to_q, q_to_p))

    def _couple(self, R_p: Tensor, R_q: Tensor, sizes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """(p_to_q, q_to_p) of this rank's rows, by the plan over all rows in scope, which every rank solves alike."""
        mine = slice(0, len(R_p))
        if sizes is not None and self.settings.transport_scope == "global":
            mine = local_slice(sizes)
            both = gather_rows(torch.cat([R_p, R_q], 1), sizes)
            R_p, R_q = both[:, :ROW], both[:, ROW:]
        if not len(R_p):  # a rank without rows in local scope: there is no plan of nothing
            return R_p, R_q
        with torch.autocast(R_p.device.type, enabled=False):
            solved = self.solve(R_p, R_q)
            self.marginal_error = solved.marginal_error
            weights = len(R_p) * solved.plan
            return weights[:, mine].T @ R_p, weights[mine] @ R_q

    def _fuse(self, product: Tensor, R_p: Tensor, R_q: Tensor, transported: tuple[Tensor, Tensor] | None) -> Tensor:
        parts = [product] if self.hadamard else []
        if transported is not None:
            p_to_q, q_to_p = transported
            parts += [p_to_q, R_q, q_to_p, R_p]
        return torch.cat(parts or [R_p, R_q], 1)


class Concat(PairHead):
    """The paper's concatenation baseline."""


class Hadamard(PairHead):
    """PARROT without transport."""

    hadamard = True


class Ot(PairHead):
    """PARROT without the Hadamard product."""

    transports = True


class Parrot(PairHead):
    """The paper's head."""

    hadamard = True
    transports = True
