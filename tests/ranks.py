"""The training loop on a few real processes over gloo, without Ray: what a test of the mathematics needs."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load

from parrot_dist import configuration
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.training import checkpoint
from parrot_dist.training.inference import Place, Stopped
from parrot_dist.training.model import MODEL_PART
from parrot_dist.training.rank import train_rank


@dataclass
class Listener:
    """Keeps what the loop says; wishes it to stop when it is asked once more after `stop_at` times, -1: in frozen work.

    It is asked before every step, and every batch of validation and of reference rows.
    """

    stop_at: int | None = None
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: int = 0

    def put(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))
        if kind == "fill":
            self.asked = -1  # it will be asked after each part of the frozen work too

    def stop_wanted(self) -> bool:
        self.asked += 1
        return self.asked - 1 == self.stop_at

    def notice(self) -> str | None:
        return None

    def at(self, step: int | None) -> None:
        pass


def run_rank(rank: int, world: int, store: str, text: str, stop_at: int | None, results: Any) -> None:
    """One process: train, then hand over how it ended and what it said."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=300)
    )
    listener, how = Listener(stop_at), "finished"
    try:
        train_rank(configuration.loads(text), Place(rank, world), listener, lambda record: None)
    except Stopped:
        how = "stopped"
    except UserError as error:
        how = f"failed: {error}"
    dist.destroy_process_group()
    results.put((rank, how, listener.events))


def train(config: Config, world: int, folder: Path, stop_at: int | None = None) -> tuple[str, list[tuple[str, dict]]]:
    """Train on `world` processes; how the first rank ended, and its events."""
    # One server imports torch once, and every rank is forked from it before it has run anything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranks", "transformers.models.hubert.modeling_hubert"])
    results = context.Queue()
    store = folder / f"store-{len(list(folder.glob('store-*')))}"
    arguments = [(rank, world, str(store), configuration.dumps(config), stop_at, results) for rank in range(world)]
    processes = [context.Process(target=run_rank, args=argument) for argument in arguments]
    for process in processes:
        process.start()
    ended = sorted((next_result(results, processes) for _ in processes), key=lambda result: result[0])
    for process in processes:
        process.join()
    assert len({how for _, how, _ in ended}) == 1, ended
    return ended[0][1], ended[0][2]


def losses(events: list[tuple[str, dict[str, Any]]]) -> list[float]:
    """The training loss of each epoch."""
    return [event["train_loss"] for kind, event in events if kind == "epoch"]


def next_result(results: Any, processes: list[Any]) -> Any:
    """What the next rank hands over, unless one died without a word."""
    while True:
        try:
            return results.get(timeout=1)
        except Empty:
            assert all(process.exitcode in (None, 0) for process in processes), "a rank died"


def trained_parameters(config: Config, step: int | None = None) -> dict[str, torch.Tensor]:
    """The parameters in a run's checkpoint at `step`, or in its newest."""
    found = [one for one in checkpoint.find_all(config.run_url) if step in (None, one.manifest.step)]
    return load(checkpoint.read_part(found[-1], MODEL_PART))


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm, all parameters together."""
    one, other = (torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for tensors in (ours, theirs))
    return float((one - other).norm() / other.norm())
