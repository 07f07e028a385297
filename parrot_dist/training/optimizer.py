"""The optimiser of a run: which parameter learns at which rate."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from parrot_dist.config import Config
from parrot_dist.training.model import ParrotModel


def build_optimizer(model: ParrotModel, config: Config) -> torch.optim.Optimizer:
    """Adam (the paper's) with the head's learning rate and each branch's own for its unfrozen part, which falls by
    `lr_decay` from block to block below the last (as in ELECTRA, Clark et al. 2020, arXiv 2003.10555).
    """
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "lr": config.optim.lr}]
    for branch, encoder in model.branches():
        settings, layers = getattr(config.encoders, branch), defaultdict(list)
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                layers[encoder.layer_index(name)].append(parameter)
        for layer, parameters in sorted(layers.items()):
            groups.append({"params": parameters, "lr": settings.lr * settings.lr_decay ** (encoder.depth - layer)})
    # Fused: one pass over each parameter, where the default's ten took a third of a step with frozen encoders.
    return torch.optim.Adam(groups, weight_decay=config.optim.weight_decay, fused=True)
