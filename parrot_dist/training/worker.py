"""What Ray Train runs in every worker: one rank of the job."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch

from parrot_dist import configuration
from parrot_dist.config import Config
from parrot_dist.errors import Unreachable, UserError
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.training.inference import Place, Stopped
from parrot_dist.training.lease import Claim
from parrot_dist.training.monitor import LogToReporter, Reporter
from parrot_dist.training.pulse import Heart
from parrot_dist.training.rank import train_rank


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one rank; `settings`: the configuration as YAML, the handle of the `Monitor`, and the driver's `Claim`.

    What a person must mend is told to the driver and not raised: Ray Train would try it again.
    """
    config, place = configuration.loads(settings["config"]), _place()
    with Heart(settings["monitor"], place.rank, config.scale.hang_seconds) as heart:
        reporter = Reporter(settings["monitor"], heart)
        if place.rank == 0:  # the others have the same to say
            logger = logging.getLogger("parrot_dist")
            logger.setLevel(logging.INFO)
            logger.addHandler(LogToReporter(reporter))
        reporter.put_and_wait("end", rank=place.rank, **_train(config, place, reporter, settings["claim"]))


def _train(config: Config, place: Place, reporter: Reporter, claim: Claim) -> dict[str, str]:
    """How it ended, and why."""
    try:
        train_rank(config, place, reporter, _report, claim.check)
    except Stopped:
        return {"how": "stopped"}
    except Unreachable:
        raise  # Ray Train tries again
    except UserError as error:
        return {"how": "failed", "why": str(error)}
    return {"how": "finished"}


def _place() -> Place:
    context = ray.train.get_context()
    return Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


def _report(record: EpochRecord) -> None:
    # ASYNC: the default waits for the controller's next poll, up to two seconds, on every call.
    mode = ray.train.CheckpointUploadMode.ASYNC
    ray.train.report(asdict(record), checkpoint_upload_mode=mode)
