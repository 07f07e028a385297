"""What ranks that train together owe each other: the same parameters, and word of what keeps one from going on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parrot_dist.errors import Unreachable, UserError
from parrot_dist.training.inference import Batch, Place
from parrot_dist.training.model import ParrotModel
from parrot_dist.training.precision import autocast


def wrap(model: ParrotModel, place: Place) -> nn.Module:
    """`model`, under DDP where there is anybody to share with; what is frozen is neither sent nor kept, since every
    rank has loaded the same.
    """
    if place.world_size == 1:
        return model
    trained = model.trained()
    frozen = [name for name, _ in [*model.named_parameters(), *model.named_buffers()] if name not in trained]
    # The list that DDP documents for this; without it all weights of the encoders are broadcast at the start.
    model._ddp_params_and_buffers_to_ignore = frozen  # type: ignore[assignment]
    devices = [place.device] if place.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def next_or_error(batches: Iterator[Batch]) -> Batch | UserError:
    """The next batch, or why there is none: the other ranks must hear of it, or they would wait for this one."""
    try:
        return next(batches)
    except Unreachable:  # not for a person to mend: this worker ends, and Ray Train starts all again
        raise
    except UserError as error:
        return error


def rehearse(network: nn.Module, model: ParrotModel, place: Place, precision: str) -> None:
    """One pass of `network`, which is `model` as `wrap` gave it, over silence, thrown away.

    DDP arranges its buckets anew after the first pass, and sums depend on the arrangement: without this, a resumed run
    would add up its first gradients otherwise than the undisturbed one. And it shows at once whether every trained
    parameter gets a gradient.

    Raises:
        UserError: one does not.
    """
    model.train()
    silence = {branch: model.silence(branch) for branch in model.encoders}
    keys = torch.zeros(1, dtype=torch.int64, device=place.device)
    with autocast(precision, place.device):
        logits = network(silence, keys, [1] * place.world_size)
    logits.sum().backward()
    without = [name for name, parameter in model.trained().items() if parameter.grad is None]
    if without:
        raise UserError(f"no gradient reaches {', '.join(without[:5])}: freeze them (encoders.*.unfreeze)")
    model.zero_grad(set_to_none=True)
