"""The course of a training run: one record an epoch, kept in checkpoints, logged, and drawn in the report."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What one epoch gave; the scores are those of the validation split.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps since the run began.
        train_loss: mean cross-entropy of the epoch's training utterances, in nats.
        val_loss: mean cross-entropy of the validation utterances, in nats.
        accuracy: share between 0 and 1.
        uar: unweighted average recall, between 0 and 1.
        macro_f1: between 0 and 1.
        utterances_per_second: training utterances over all ranks, by the epoch's training time.
        data_wait: share of the training time, 0 to 1, that the ranks waited for data.
        seconds: training and validation together.
        marginal_error: largest deviation of the transport plan's marginals in the epoch; None without a plan.
        non_finite: steps left out of training because their loss or gradient was not finite.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    accuracy: float
    uar: float
    macro_f1: float
    utterances_per_second: float
    data_wait: float
    seconds: float
    marginal_error: float | None = None
    non_finite: int = 0


def line(record: EpochRecord, epochs: int, room: int = sys.maxsize) -> str:
    """The one terminal line of an epoch out of `epochs`; the columns of all epochs stand below each other.

    The last columns are left out where there is only `room` for so many characters.
    """
    width = len(str(epochs))
    columns = [
        f"epoch {record.epoch:{width}d}/{epochs}",
        f"loss {record.train_loss:6.3f}",
        f"val {record.val_loss:6.3f}",
        f"accuracy {record.accuracy:5.3f}",
        f"UAR {record.uar:5.3f}",
        f"macro-F1 {record.macro_f1:5.3f}",
        f"{record.utterances_per_second:7.1f} utt/s",
        f"data wait {record.data_wait:6.1%}",
        f"{record.seconds:6.1f} s",
    ]
    if record.non_finite:
        columns.append(f"left out {record.non_finite} steps")
    if record.marginal_error is not None:
        columns.append(f"marginals {record.marginal_error:.0e}")
    while len(columns) > 1 and len("  ".join(columns)) > room:
        columns.pop()
    return "  ".join(columns)


def to_json(history: Iterable[EpochRecord]) -> list[dict[str, Any]]:
    """`history` as plain values that `json.dumps` takes."""
    return [asdict(record) for record in history]


def from_json(rows: Iterable[Mapping[str, Any]]) -> list[EpochRecord]:
    """The inverse of `to_json`.

    Raises:
        TypeError: a row has a field that a record does not have, or lacks one.
    """
    return [EpochRecord(**row) for row in rows]
