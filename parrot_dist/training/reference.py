"""The reference rows of a checkpoint: training utterances against which single ones are transported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from parrot_dist.config import Fusion
from parrot_dist.data.stream import Source
from parrot_dist.fusion import PairHead, Reference, pick_reference
from parrot_dist.training.inference import Item, Place, infer
from parrot_dist.training.model import Inputs, ParrotModel
from parrot_dist.training.task import Task


def embed_reference(
    task: Task, feeds: Mapping[str, Source[Item]], model: ParrotModel, place: Place, stop_wanted: Callable[[], bool]
) -> tuple[Tensor, Tensor] | None:
    """The reference's rows R_p and R_q, each (n, 120), of `model` as it is now: `fusion.reference_rows` training
    utterances, as many of each class as there are. None for a head that transports nothing, and on all ranks but the
    first. Changes nothing in `model`.

    Raises:
        Stopped: `stop_wanted`, see `infer`.
    """
    head, fusion = model.head, task.config.fusion
    if not isinstance(head, PairHead) or not head.needs_reference:
        return None
    train = task.parts.train
    rows = train[pick_reference(task.labels[train], fusion.reference_rows, task.config.seed)]

    def both(inputs: Inputs, _: list[int]) -> Tensor:
        return torch.cat(head.rows(*model.embed(inputs)), 1)

    training = model.training
    model.eval()
    _, values, _ = infer(task, feeds, rows, place, both, stop_wanted=stop_wanted)
    model.train(training)
    if place.rank != 0:
        return None
    R_p, R_q = torch.from_numpy(values).chunk(2, dim=1)
    return R_p.contiguous(), R_q.contiguous()


def fit_and_dump(rows: tuple[Tensor, Tensor], fusion: Fusion) -> bytes:
    """The reference of these rows R_p and R_q, fitted now, as safetensors."""
    reference = Reference.fit(*rows, fusion.epsilon, fusion.cost)
    return save_tensors({name: tensor.contiguous() for name, tensor in reference.to_tensors().items()})
