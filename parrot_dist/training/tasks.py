"""Plain functions as tasks on a Ray cluster, each on the resources of one worker (`scale`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from parrot_dist.config import Scale
from parrot_dist.errors import Unreachable, UserError
from parrot_dist.training.trainer import resources_of

Result = TypeVar("Result")


def run_all(
    function: Callable[..., Result], calls: list[tuple[Any, ...]], scale: Scale
) -> Iterator[tuple[int, Result]]:
    """(number of the call, result) of every call of `function`, as they end.

    Raises:
        UserError: one of them did.
    """
    need = resources_of(scale)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if calls and not any(all(node.get(name, 0) >= amount for name, amount in need.items()) for node in nodes):
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in need.items())
        print(f"waiting until the cluster has a node with {wanted}", flush=True)
    # A store that is away for a while is not the end of all the others.
    options = {"num_cpus": need["CPU"], "num_gpus": need.get("GPU", 0), "retry_exceptions": [Unreachable]}
    task: Any = ray.remote(**options)(function)  # type: ignore[call-overload]  # typed as if it took no list
    running = {task.remote(*call): number for number, call in enumerate(calls)}
    while running:
        (ready,), _ = ray.wait(list(running))
        try:
            yield running.pop(ready), ray.get(ready)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise


def room(scale: Scale, workers: int = 1) -> int:
    """How many groups of so many workers the cluster has room for at once; at least one, which may have to wait."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, min(int(there.get(name, 0) // need) for name, need in resources_of(scale, workers).items()))
