"""What a run has to remember to go on as if nothing had happened, and its form in a checkpoint."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from parrot_dist.errors import UserError
from parrot_dist.fusion import Reference
from parrot_dist.reporting import history
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.model import (
    MODEL_PART,
    REFERENCE_PART,
    ParrotModel,
    check_encoders,
    dump_trained,
    load_trained,
)
from parrot_dist.training.reference import dump_reference

STATE_PART = "state.pt"


@dataclass
class State:
    """Where a run stands. Random numbers need no state: order and dropout are functions of seed, step and sample.

    Attributes:
        step: steps taken, those included whose rows could all not be read.
        epoch: epochs completed.
        epoch_step: steps taken in the running epoch.
        loss_sum: of the running epoch, summed over its utterances so far.
        seen: utterances of the running epoch so far.
        skipped: utterances of the running epoch that could not be read.
        marginal_error: the largest of the running epoch.
        non_finite: steps of the running epoch that were left out.
        history: one record for every completed epoch.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    loss_sum: float = 0.0
    seen: int = 0
    skipped: int = 0
    marginal_error: float = 0.0
    non_finite: int = 0
    history: list[EpochRecord] = field(default_factory=list)

    def close_epoch(self, record: EpochRecord) -> None:
        """Go over to the next epoch."""
        self.history.append(record)
        self.epoch += 1
        self.epoch_step, self.loss_sum, self.seen, self.skipped, self.marginal_error = 0, 0.0, 0, 0, 0.0
        self.non_finite = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for a file that is loaded without unpickling objects."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {"history": history.to_json(self.history)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> State:
        """The inverse of `to_dict`."""
        return cls(**plain | {"history": history.from_json(plain["history"])})


def dump_parts(
    state: State,
    model: ParrotModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    reference: Reference | None,
) -> dict[str, bytes]:
    """The parts of a checkpoint but for its configuration."""
    buffer = io.BytesIO()
    torch.save({"state": state.to_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, buffer)
    parts = {MODEL_PART: dump_trained(model), STATE_PART: buffer.getvalue()}
    if reference is not None:
        parts[REFERENCE_PART] = dump_reference(reference)
    return parts


def restore(found: Found, model: ParrotModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> State:
    """Put model, optimiser and scaler where they were at `found`, and return where the run stood.

    Raises:
        UserError: a part is damaged, or does not belong to this model.
    """
    check_encoders(model, found)
    load_trained(model, checkpoint.read_part(found, MODEL_PART))
    saved = read_state(found)
    optimizer.load_state_dict(saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])
    return _state_of(found, saved)


def read_state(found: Found) -> dict[str, Any]:
    """The plain content of the state part; loads tensors and plain values, never code."""
    data = checkpoint.read_part(found, STATE_PART)
    saved: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return saved


def read_history(found: Found) -> list[EpochRecord]:
    """The epochs that led to a checkpoint."""
    return _state_of(found, read_state(found)).history


def _state_of(found: Found, saved: dict[str, Any]) -> State:
    try:
        return State.from_dict(saved["state"])
    except (TypeError, KeyError) as error:  # a field that this version does not know, or one that it needs
        raise UserError(f"{found.url}: saved by another version of this program ({error})") from error
