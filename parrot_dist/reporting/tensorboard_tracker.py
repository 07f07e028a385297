"""TensorBoard: event files beside the checkpoints, one for each checkpoint, written once and never changed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.reporting.tracking import FOLDER, Point


class TensorBoard:
    """Writes to `<run>/tensorboard/`, which `tensorboard --logdir` takes, also on S3."""

    def __init__(self, config: Config) -> None:
        self._url = storage.join(config.run_url, FOLDER)

    def log(self, points: Sequence[Point]) -> None:
        """Put an event file with `points` on storage."""
        # Objects cannot be appended to: the file is complete before it goes up.
        with tempfile.TemporaryDirectory() as folder:
            with SummaryWriter(folder) as writer:
                for point in points:
                    for curve, value in point.values.items():
                        writer.add_scalar(curve, value, point.step, walltime=point.time)
            for file in Path(folder).iterdir():
                storage.write_bytes(storage.join(self._url, file.name), file.read_bytes())

    def close(self, finished: bool) -> None:
        """Nothing is open."""


open_tracker = TensorBoard
