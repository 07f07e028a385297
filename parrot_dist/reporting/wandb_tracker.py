"""Weights & Biases: a run in the project WANDB_PROJECT, `parrot` unless set; WANDB_MODE=offline keeps it in files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import wandb

from parrot_dist import configuration, storage
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting.tracking import IDENTITY, Point


def check() -> None:
    """Look whether somebody is logged in.

    Raises:
        UserError: nobody is, and wandb would ask.
    """
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        wandb.Api()
    except wandb.errors.Error as error:
        raise UserError(
            f"tracking: wandb: {error} Or set WANDB_API_KEY, or WANDB_MODE=offline to keep the run in files"
        ) from error


class WeightsAndBiases:
    """One run there for all parts of a run, known by its id."""

    def __init__(self, config: Config) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "parrot"),
            id=storage.read_bytes(storage.join(config.run_url, IDENTITY)).decode(),
            resume="allow",
            name=config.name,
            config=configuration.flat(config),
            settings=wandb.Settings(silent=True, console="off"),  # stdout belongs to the run's own lines
        )

    def log(self, points: Sequence[Point]) -> None:
        """Log values."""
        for point in points:
            self._run.log(point.values, step=point.step)

    def close(self, finished: bool) -> None:
        """Upload the rest."""
        self._run.finish(exit_code=0 if finished else 1)


open_tracker = WeightsAndBiases
