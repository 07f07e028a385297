"""A configuration as a job of Ray Train."""

from __future__ import annotations

import secrets
from typing import Any

import ray
import ray.train
import ray.train.torch
from pyarrow.fs import FSSpecHandler, PyFileSystem

from parrot_dist import configuration, storage
from parrot_dist.config import Config, Scale
from parrot_dist.training.lease import Claim
from parrot_dist.training.rendezvous import Rendezvous
from parrot_dist.training.worker import train_worker

RAY_FOLDER = "ray"  # of the run: what Ray Train writes
MIN_WAIT_S, MAX_WAIT_S = 1800, 7 * 24 * 3600


class Trainer(ray.train.torch.TorchTrainer):
    """A Ray Train job that does not heed SIGINT, and that can be given up from another thread."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray's own handler would end the workers without a checkpoint.
        self._controller = controller

    def give_up(self) -> None:
        """End the workers, or the wait for them, at once; `fit` raises."""
        if self._controller is not None:
            ray.kill(self._controller)


def build_trainer(config: Config, monitor: Any, claim: Claim) -> Trainer:
    """The Ray Train job of the driver with this `claim`.

    Its own small state goes to our storage by our filesystem, which rides out outages.
    """
    scale = config.scale
    fs, path = storage.filesystem(storage.join(config.run_url, RAY_FOLDER))
    return Trainer(
        train_worker,
        train_loop_config={"config": configuration.dumps(config), "monitor": monitor, "claim": claim},
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # typed as it was in Ray Train V1
            num_workers=(scale.min_workers, scale.num_workers) if scale.min_workers else scale.num_workers,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=scale.resize_seconds,
            use_gpu=scale.use_gpu,
            resources_per_worker=resources_of(scale),
            placement_strategy=scale.placement,
        ),
        torch_config=Rendezvous(
            backend="cpu:gloo,cuda:nccl" if scale.use_gpu else "gloo", timeout_s=wait_of(scale.hang_seconds)
        ),
        run_config=ray.train.RunConfig(
            # A name of its own each time: what to go on from is read off our checkpoints, not off Ray's memory.
            name=secrets.token_hex(4),
            storage_path=path,
            storage_filesystem=PyFileSystem(FSSpecHandler(fs)),
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
        ),
    )


def wait_of(hang_seconds: float) -> int:
    """Seconds that ranks wait for each other: longer than it takes to find one that hangs; half an hour at least."""
    return max(MIN_WAIT_S, int(2 * hang_seconds)) if hang_seconds else MAX_WAIT_S


def resources_of(scale: Scale, workers: int = 1) -> dict[str, float]:
    """What so many workers ask Ray for, by its names."""
    return {"CPU": float(workers * scale.cpus_per_worker)} | ({"GPU": float(workers)} if scale.use_gpu else {})
