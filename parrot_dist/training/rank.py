"""One rank's part in a run: from the newest checkpoint to the end or to a wish to stop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import unfenced
from parrot_dist.training.inference import Place
from parrot_dist.training.loop import Loop
from parrot_dist.training.model import build_model, describe_encoders, pinned
from parrot_dist.training.monitor import Listener
from parrot_dist.training.precision import emulated
from parrot_dist.training.prefix import open_feeds
from parrot_dist.training.task import open_task


def train_rank(
    config: Config,
    place: Place,
    reporter: Listener,
    on_epoch: Callable[[EpochRecord], None],
    fence: Callable[[], None] = unfenced,
) -> None:
    """Train as the rank at `place`, from the newest checkpoint of the run; every rank makes this call.

    `fence` raises if the run is another driver's by now, see `checkpoint.save`.

    Raises:
        Stopped: `reporter` asked for it.
        UserError: the settings, the data or the numbers do not allow to go on.
    """
    # A fixed number of threads: sums are cut into as many parts, and the same run must give the same bits.
    torch.set_num_threads(config.scale.cpus_per_worker)
    task = open_task(config)
    # One rank looks, since a listing may change between two looks.
    found = place.collect(checkpoint.newest_intact(config.run_url) if place.rank == 0 else None)[0]
    model = build_model(pinned(config, found)).to(place.device)
    if any(encoders != describe_encoders(model) for encoders in place.collect(describe_encoders(model))):
        raise UserError("encoders.*.source: workers have read different weights there; pin the revision, or copy them")
    if place.rank == 0:
        step, url = (found.manifest.step, found.url) if found else (0, None)
        reporter.put("start", run=config.run_url, workers=place.world_size, step=step, checkpoint=url)
        if emulated(config.optim.precision, place.device):
            slow = f"optim.precision: this {place.device.type} only emulates bf16; float32 or, on a GPU, fp16 is faster"
            reporter.put("warning", text=slow)
    feed = partial(open_feeds, task, model, place, reporter)
    Loop(task, model, feed, place, reporter, on_epoch, fence).run(found)
