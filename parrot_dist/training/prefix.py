"""Frozen work done once: before training, the ranks together compute what the frozen prefixes make of the corpus."""

from __future__ import annotations

import hashlib
import json
import zlib

import numpy as np
import torch

from parrot_dist import storage
from parrot_dist.data.frozen import FrozenCorpus, has_part, missing_parts, part_rows, write_part
from parrot_dist.data.stream import Skipped, Source, Utterance
from parrot_dist.encoders import Activation, Encoder
from parrot_dist.training.inference import Item, Place, Stopped
from parrot_dist.training.model import ParrotModel
from parrot_dist.training.monitor import Listener
from parrot_dist.training.precision import autocast
from parrot_dist.training.task import Task

FORMAT = 1  # raise it when an encoder computes something else than before, or a record changes its form
BATCH = 16


def open_feeds(task: Task, model: ParrotModel, place: Place, reporter: Listener) -> dict[str, Source[Item]]:
    """Branch -> what feeds its encoder: activations of its frozen prefix, computed now if nobody has before, or audio.

    Every rank makes this call, and takes its share of the parts that are missing.

    Raises:
        Stopped: `reporter` asked for it; the parts that are done stay.
    """
    feeds: dict[str, Source[Item]] = {}
    augmented = task.config.data.augment.on
    if augmented and place.rank == 0:
        reporter.put("message", text="data.augment: waveforms change, so frozen layers compute in every epoch anew")
    for branch, encoder in model.branches():
        if augmented or not task.config.data.keep_frozen or not encoder.has_prefix:
            feeds[branch] = task.corpus
            continue
        entry = storage.join(task.config.cache_url, entry_key(task, encoder))
        missing = place.collect(missing_parts(entry, len(task.index)) if place.rank == 0 else None)[0]
        missing = from_own_start(missing, task.config.name)
        if place.rank == 0:
            state = "to be computed once" if missing else "computed before"
            reporter.put("message", text=f"frozen part of {branch}: {state} ({entry})")
        # The exchange also means that nobody reads before everybody has written.
        for done in range(0, len(missing), place.world_size):
            for part in missing[done + place.rank : done + place.rank + 1]:
                if not has_part(entry, part):
                    fill_part(task, encoder, entry, part, place)
            if place.rank == 0:
                reporter.put("fill", branch=branch, done=done, parts=len(missing))
            if place.exchange([place.rank == 0 and reporter.stop_wanted()]).any():
                raise Stopped
        feeds[branch] = FrozenCorpus.open(entry, task.index)
    return feeds


def from_own_start(parts: list[int], run: str) -> list[int]:
    """`parts` in turn from one that depends on the run's name: folds that fill an entry at once meet half-way, and find
    the rest done.
    """
    start = zlib.crc32(run.encode()) % max(1, len(parts))
    return parts[start:] + parts[:start]


def entry_key(task: Task, encoder: Encoder) -> str:
    """Names everything that the activations depend on: a change of any of it is another entry."""
    facts = {
        "format": FORMAT,
        "encoder": encoder.digest,
        "prefix": encoder.prefix_name,
        "precision": task.config.optim.precision,
        "max_seconds": task.config.data.max_seconds,
        "index": task.index.digest,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@torch.no_grad()
def fill_part(task: Task, encoder: Encoder, entry: str, part: int, place: Place) -> None:
    """Compute and write the activations of a part, samples of other splits included: folds and evaluations share it."""
    activations: dict[int, Activation] = {}
    skipped: dict[int, str] = {}
    for rows in np.array_split(whole := part_rows(part, len(task.index)), -(-len(whole) // BATCH)):
        data = task.corpus.read(rows)
        items = [task.corpus.decode(row, data[row]) for row in rows.tolist()]
        good = [item for item in items if isinstance(item, Utterance)]
        skipped |= {item.row: item.reason for item in items if isinstance(item, Skipped)}
        if good:
            with autocast(task.config.optim.precision, place.device):
                made = encoder.prefix([torch.from_numpy(item.waveform) for item in good])
            activations |= dict(zip((item.row for item in good), made, strict=True))
    write_part(entry, part, activations, skipped)
