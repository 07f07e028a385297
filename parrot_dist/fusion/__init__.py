"""Fusion heads by name.

head = build_head("parrot", mamba_dim=960, attention_dim=768, num_classes=6)
logits = head(mamba, attention, keys=row_keys(seed, step, samples))
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from parrot_dist.errors import UserError, nearest
from parrot_dist.fusion.dropout import row_keys
from parrot_dist.fusion.heads import Head, HeadSettings, HeadType, PairHead
from parrot_dist.fusion.reference import Reference, pick_reference
from parrot_dist.registry import Registry
from parrot_dist.schema import out_of_bounds

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
    checked = _checked(settings)
    head = head_type(mamba_dim, attention_dim, num_classes, checked)
    lost = head.state_dict().keys() - {key for key, value in head.named_parameters() if value.requires_grad}
    if lost:
        raise UserError(f"fusion.name={name}: checkpoints keep trained parameters only, not {', '.join(sorted(lost))}")
    return head


def _checked(settings: dict[str, Any]) -> HeadSettings:
    known = [field.name for field in fields(HeadSettings)]
    for key in settings.keys() - known:
        near = nearest(key, known)
        hint = f"did you mean {near}?" if near else f"it is one of {', '.join(known)}"
        raise UserError(f"fusion.{key}: there is no such setting; {hint}")
    checked = HeadSettings(**settings)
    if faults := out_of_bounds(checked):
        raise UserError("\n".join(f"fusion.{fault}" for fault in faults))
    return checked
