"""Fusion heads by name.

head = build_head("parrot", mamba_dim=960, attention_dim=768, num_classes=6)
logits = head(mamba, attention, keys=row_keys(seed, step, samples))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from parrot_dist.errors import UserError, nearest
from parrot_dist.fusion.dropout import row_keys
from parrot_dist.fusion.heads import Head, HeadSettings, HeadType, PairHead
from parrot_dist.fusion.reference import Reference, pick_reference
from parrot_dist.fusion.sinkhorn import COSTS, PLAN_GRADIENTS
from parrot_dist.registry import Registry

__all__ = ["HEADS", "Head", "HeadSettings", "PairHead", "Reference", "build_head", "pick_reference", "row_keys"]

HEADS: Registry[HeadType] = Registry(
    "fusion.name",
    "parrot_dist.heads",
    {
        "parrot": "parrot_dist.fusion.heads:Parrot",
        "hadamard": "parrot_dist.fusion.heads:Hadamard",
        "ot": "parrot_dist.fusion.heads:Ot",
        "concat": "parrot_dist.fusion.heads:Concat",
        "fcn": "parrot_dist.fusion.heads:Fcn",
        "cnn": "parrot_dist.fusion.heads:Cnn",
    },
)


def build_head(name: str, mamba_dim: int, attention_dim: int, num_classes: int, **settings: Any) -> Head:
    """The head called `name`: embeddings (B, mamba_dim) and (B, attention_dim) -> logits (B, num_classes).

    The two embeddings may come from any two encoders, also two of one family. `settings` are those of `HeadSettings`.

    Raises:
        UserError: no such head or setting, a value out of its range, or a head that checkpoints could not keep.
    """
    head_type = HEADS[name]
    for key in settings:
        _known("setting of fusion", key, [field.name for field in fields(HeadSettings)])
    checked = HeadSettings(**settings)
    _check(checked)
    head = head_type(mamba_dim, attention_dim, num_classes, checked)
    lost = head.state_dict().keys() - {key for key, value in head.named_parameters() if value.requires_grad}
    if lost:
        raise UserError(f"fusion.name={name}: checkpoints keep trained parameters only, not {', '.join(sorted(lost))}")
    return head


def _check(settings: HeadSettings) -> None:
    _known("fusion.transport_scope", settings.transport_scope, ("global", "local"))
    _known("fusion.cost", settings.cost, COSTS)
    _known("fusion.plan_gradient", settings.plan_gradient, PLAN_GRADIENTS)
    _known("fusion.over", settings.over, ("batch", "frames"))
    _known("fusion.branch", settings.branch, ("mamba", "attention"))
    if not settings.epsilon > 0:
        raise UserError(f"fusion.epsilon: {settings.epsilon} is not above 0")
    if settings.iterations < 1:
        raise UserError(f"fusion.iterations: {settings.iterations} is not at least 1")
    if not 0 <= settings.dropout < 1:
        raise UserError(f"fusion.dropout: {settings.dropout} is not in [0, 1)")


def _known(what: str, word: str, words: Iterable[str]) -> None:
    known = list(words)
    if word not in known:
        near = nearest(word, known)
        hint = f"did you mean {near!r}?" if near else f"it is one of {', '.join(known)}"
        raise UserError(f"{what}: there is no {word!r}; {hint}")
