"""What a run has to remember to go on as if nothing had happened, and its form in a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from parrot_dist.errors import UserError
from parrot_dist.reporting import history
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.model import MODEL_PART, ParrotModel, check_encoders, load_trained

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


@dataclass(frozen=True)
class Snapshot:
    """A copy on the CPU of what training changes, to be written while training goes on; it lasts for one `dump`.

    Attributes:
        trained: the trained parameters.
        rest: content of the state part.
    """

    trained: dict[str, Tensor]
    rest: dict[str, Any]

    @classmethod
    def take(
        cls, state: State, model: ParrotModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> Snapshot:
        """What is now."""
        known = optimizer.state_dict()
        known["state"] = {number: _copy(facts) for number, facts in known["state"].items()}
        trained = {name: tensor.contiguous() for name, tensor in _copy(model.trained()).items()}
        return cls(trained, {"state": state.to_dict(), "optimizer": known, "scaler": scaler.state_dict()})

    def dump(self) -> dict[str, bytes]:
        """The parts of a checkpoint that hold it, which is emptied: it may be as large as they are."""
        buffer = io.BytesIO()
        torch.save(self.rest, buffer)
        self.rest.clear()
        parts = {STATE_PART: buffer.getvalue(), MODEL_PART: save_tensors(self.trained)}
        self.trained.clear()
        return parts


def _copy(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts` with copies on the CPU in the place of its tensors."""
    return {
        name: fact.detach().to("cpu", copy=True) if isinstance(fact, Tensor) else fact for name, fact in facts.items()
    }


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
