"""The paper's tables on a cluster: every encoder embeds every corpus once, then all cells are trained from that."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.progress import track

from parrot_dist import config as configuration
from parrot_dist import storage
from parrot_dist.config import Config, Scale
from parrot_dist.data.split import count_folds
from parrot_dist.errors import UserError
from parrot_dist.grid import Cell, Experiment, cells_of, config_of
from parrot_dist.local.process import exit_on_sigterm
from parrot_dist.reporting.papertable import Results, markdown, show, to_json
from parrot_dist.training.cells import Embeddings, Outcome, embed, train_cell
from parrot_dist.training.launch import connect
from parrot_dist.training.task import check_task, open_task
from parrot_dist.training.trainer import resources_of

FOLDER = "papertable"
LINES = 20  # of progress, where there is no terminal

Result = TypeVar("Result")


def fill_table(experiments: list[Experiment]) -> None:
    """Compute what is missing of the table on the cluster at RAY_ADDRESS; show it, and write it to storage.

    Raises:
        UserError: a corpus, an encoder or a setting cannot be used.
    """
    output = experiments[0].config.output
    for place in {one.config.cache_url for one in experiments} | {output}:
        storage.check_writable(place)
    tasks = [open_task(one.config) for one in experiments]
    for task in tasks:
        check_task(task)
    folds = [count_folds(task.index, task.config.data.split) for task in tasks]
    with connect():
        exit_on_sigterm()  # Ray's own handler, which connecting sets, ends at once and leaves its files behind
        embeddings = embed_all(experiments)
        works = [
            Work.of(cell, one, embeddings)
            for one, count in zip(experiments, folds, strict=True)
            for cell in cells_of(one, count)
        ]
        done = storage.list_files(storage.join(output, FOLDER))
        missing = [work for work in works if work.file not in done]
        print(f"{len(works)} trainings, {len(works) - len(missing)} of them done before", flush=True)
        training = run_all(train_and_keep, [(work, output) for work in missing], _need(experiments))
        deque(count_off(training, "trained", len(missing)), maxlen=0)
    with ThreadPoolExecutor(16) as pool:
        texts = pool.map(lambda work: storage.read_bytes(storage.join(output, FOLDER, work.file)), works)
        results: Results = {work.cell: json.loads(text) for work, text in zip(works, texts, strict=True)}
    publish(experiments, results)


@dataclass(frozen=True)
class Work:
    """A cell with all that its training needs, and the file that keeps what became of it.

    The file's name says everything that the numbers depend on, so what is there need not be done again, and anything
    else, be it a setting, an encoder or the corpus, has another name.
    """

    cell: Cell
    config: Config
    embeddings: dict[str, Embeddings]

    @classmethod
    def of(cls, cell: Cell, experiment: Experiment, embeddings: dict[tuple[str, str], Embeddings]) -> Work:
        """The work of one cell."""
        branches = dict(zip(("mamba", "attention"), cell.encoders, strict=False))
        found = {branch: embeddings[cell.corpus, name] for branch, name in branches.items()}
        return cls(cell, config_of(cell, experiment), found)

    @property
    def file(self) -> str:
        """Its name below the table's folder."""
        computed = replace(self.config, output="", scale=Scale(), data=replace(self.config.data, cache="", workers=0))
        entries = [one.entry.rpartition("/")[2] for one in self.embeddings.values()]
        digest = hashlib.sha256("\n".join([configuration.dumps(computed), *entries]).encode()).hexdigest()
        cell = self.cell
        return f"{cell.corpus}/{'_'.join(cell.encoders)}/{cell.head}/fold{cell.fold}-{digest[:16]}.json"


def train_and_keep(work: Work, output: str) -> None:
    """Train a cell, and keep what became of it."""
    outcome = train_cell(work.config, work.embeddings)
    storage.write_bytes(storage.join(output, FOLDER, work.file), json.dumps(plain(outcome)).encode())
    # A training refers to itself, and Python does not see how large its tensors are: without this, the process, which
    # goes on to the next cell, grows by 30 MB with each.
    gc.collect()


def plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values."""
    scores = outcome.scores
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "uar": scores.uar,
        "epochs": outcome.epochs,
        "confusion": scores.confusion.tolist(),
    }


def embed_all(experiments: list[Experiment]) -> dict[tuple[str, str], Embeddings]:
    """(corpus, encoder) -> its embeddings, all complete; several tasks share a corpus where the cluster has room."""
    pairs = [(one, name) for one in experiments for name in one.grid.encoders]
    shares = -(-_room(experiments) // len(pairs))
    calls = [(one.config, one.grid.encoders[name], share, shares) for one, name in pairs for share in range(shares)]
    done = count_off(run_all(embed, calls, _need(experiments)), "embedded", len(calls))
    found = {number // shares: embeddings for number, embeddings in done}
    return {(one.config.name, name): found[number] for number, (one, name) in enumerate(pairs)}


def run_all(
    function: Callable[..., Result], calls: list[tuple[Any, ...]], need: dict[str, float]
) -> Iterator[tuple[int, Result]]:
    """(number of the call, result) of every call of `function` as a task that needs so much of a node, as they end.

    Raises:
        UserError: one of them did.
    """
    task = ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0))(function)
    running = {task.remote(*call): number for number, call in enumerate(calls)}
    while running:
        (ready,), _ = ray.wait(list(running))
        try:
            yield running.pop(ready), ray.get(ready)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise


def count_off(results: Iterable[Result], what: str, total: int) -> Iterator[Result]:
    """`results`, with a bar on a terminal, or a few lines elsewhere."""
    if sys.stdout.isatty():
        yield from track(results, what, total, console=Console(), transient=True)
        return
    for number, result in enumerate(results, 1):
        if number * LINES // total > (number - 1) * LINES // total:
            print(f"{what} {number}/{total}", flush=True)
        yield result


def publish(experiments: list[Experiment], results: Results) -> None:
    """Show the table; write it as Markdown and JSON."""
    place = storage.join(experiments[0].config.output, FOLDER)
    storage.write_bytes(storage.join(place, "table.json"), json.dumps(to_json(results), indent=1).encode())
    storage.write_bytes(storage.join(place, "table.md"), markdown(results).encode())
    show(results)
    print(f"\nwritten to {place}/table.md and table.json")


def _need(experiments: list[Experiment]) -> dict[str, float]:
    return resources_of(experiments[0].config.scale)


def _room(experiments: list[Experiment]) -> int:
    """How many tasks the cluster has room for at once."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, min(int(there.get(name, 0) // amount) for name, amount in _need(experiments).items()))
