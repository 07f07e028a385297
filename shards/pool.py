"""Independent tasks on the cluster that RAY_ADDRESS names, or on the threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from parrot_dist.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AT_ONCE = 64  # finished tasks fetched by one look at the cluster


def run_all(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`function` of every item, in the order in which they get done; the first error ends it.

    On a cluster `function` runs in other processes on other machines, so it and its items are pickled.
    """
    yield from _on_cluster(function, items) if os.environ.get("RAY_ADDRESS") else _on_threads(function, items)


def _on_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    pool = ThreadPoolExecutor(os.cpu_count())  # soundfile and soxr let go of the interpreter's lock
    try:
        for done in as_completed([pool.submit(function, item) for item in items]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_cluster(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    import ray

    from parrot_dist.training.launch import connect

    def call(item: Item) -> Result:
        return function(item)

    with connect():
        task = ray.remote(call)
        waiting = [task.remote(item) for item in items]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=min(AT_ONCE, len(waiting)), timeout=1)
                yield from ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
