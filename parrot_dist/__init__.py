"""PARROT: distributed training of speech emotion recognition with a Mamba and an attention encoder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parrot_dist.training.model import ParrotModel
    from parrot_dist.training.predictor import Predictor

__all__ = ["ParrotModel", "Predictor"]


def __getattr__(name: str) -> Any:
    """What other programs import from here; only then, since it takes seconds."""
    homes = {"ParrotModel": "parrot_dist.training.model", "Predictor": "parrot_dist.training.predictor"}
    if name in homes:
        return getattr(import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
