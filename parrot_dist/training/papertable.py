"""The paper's tables on a cluster: every encoder embeds every corpus once, then all cells are trained from that."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from parrot_dist import configuration, storage
from parrot_dist.config import Config, free_to_change, schema_keys
from parrot_dist.errors import Unreachable, UserError
from parrot_dist.grid import Cell, Experiment, cells_of, config_of
from parrot_dist.local.process import interrupted_by_sigterm
from parrot_dist.reporting.papertable import Results, markdown, show, to_json
from parrot_dist.training.cells import Embeddings, Outcome, embed, train_cell
from parrot_dist.training.launch import connect
from parrot_dist.training.task import check_task, open_task
from parrot_dist.training.tasks import room, run_all

FORMAT = 1  # raise it when a cell is trained otherwise than before
FOLDER = "papertable"
NAMED = 10  # cells that cannot be trained, of which the person is told why
WITHOUT_EFFECT = {"fusion.reference_rows", *filter(free_to_change, schema_keys())} - {"optim.epochs", "optim.patience"}
"""Settings that change where and how a cell is trained, but not what becomes of it."""
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
    folds = [task.folds for task in tasks]
    scale = experiments[0].config.scale
    with connect(), interrupted_by_sigterm():
        embeddings = embed_all(experiments)
        works = [
            Work.of(cell, one, embeddings)
            for one, count in zip(experiments, folds, strict=True)
            for cell in cells_of(one, count)
        ]
        done = storage.list_files(storage.join(output, FOLDER))
        missing = [work for work in works if work.file not in done]
        print(f"{len(works)} trainings, {len(works) - len(missing)} of them done before", flush=True)
        calls = [(work, output) for work in missing]
        faults = dict(count_off(run_all(train_and_keep, calls, scale), "trained", len(calls)))
        done = storage.list_files(storage.join(output, FOLDER))
    there = [work for work in works if work.file in done]
    with ThreadPoolExecutor(16) as pool:
        texts = pool.map(lambda work: storage.read_bytes(storage.join(output, FOLDER, work.file)), there)
        results: Results = {work.cell: json.loads(text) for work, text in zip(there, texts, strict=True)}
    publish(experiments, results)
    if len(there) < len(works):
        why = [f"  {missing[number].cell}: {fault}" for number, fault in sorted(faults.items()) if fault]
        raise UserError(f"{len(why)} of {len(works)} trainings cannot be done:\n" + "\n".join(why[:NAMED]))


@dataclass(frozen=True)
class Work:
    """A cell with all that its training needs, and the file that keeps what became of it.

    The file's name says what the numbers depend on, so what is there need not be done again, and anything else, be it a
    setting, an encoder or the corpus, has another name.
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
        settings = {key: value for key, value in configuration.flat(self.config).items() if key not in WITHOUT_EFFECT}
        entries = [one.entry.rpartition("/")[2] for one in self.embeddings.values()]
        digest = hashlib.sha256(json.dumps([FORMAT, settings, entries], sort_keys=True).encode()).hexdigest()
        cell = self.cell
        return f"{cell.corpus}/{'_'.join(cell.encoders)}/{cell.head}/fold{cell.fold}-{digest[:16]}.json"


def train_and_keep(work: Work, output: str) -> str:
    """Train a cell, and keep what became of it; or say why it cannot be done."""
    try:
        outcome = train_cell(work.config, work.embeddings)
    except Unreachable:
        raise  # Ray tries again
    except UserError as error:
        return str(error)
    storage.write_bytes(storage.join(output, FOLDER, work.file), json.dumps(plain(outcome)).encode())
    # A training refers to itself, and Python does not see how large its tensors are: without this, the process, which
    # goes on to the next cell, grows by 30 MB with each.
    gc.collect()
    return ""


def plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values."""
    return outcome.scores.summaries | {"epochs": outcome.epochs, "confusion": outcome.scores.confusion.tolist()}


def embed_all(experiments: list[Experiment]) -> dict[tuple[str, str], Embeddings]:
    """(corpus, encoder) -> its embeddings, all complete; several tasks share a corpus where the cluster has room."""
    pairs = [(one, name) for one in experiments for name in one.grid.encoders]
    scale = experiments[0].config.scale
    shares = -(-room(scale) // len(pairs))
    calls = [(one.config, one.grid.encoders[name], share, shares) for one, name in pairs for share in range(shares)]
    done = count_off(run_all(embed, calls, scale), "embedded", len(calls))
    found = {number // shares: embeddings for number, embeddings in done}
    return {(one.config.name, name): found[number] for number, (one, name) in enumerate(pairs)}


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
    settings = {one.config.name: configuration.flat(one.config) for one in experiments}
    encoders = {name: branch.source for one in experiments for name, branch in one.grid.encoders.items()}
    described = {"settings": settings, "encoders": encoders, "cells": to_json(results)}
    storage.write_bytes(storage.join(place, "table.json"), json.dumps(described, indent=1).encode())
    storage.write_bytes(storage.join(place, "table.md"), markdown(results).encode())
    show(results)
    print(f"\nwritten to {place}/table.md and table.json")
