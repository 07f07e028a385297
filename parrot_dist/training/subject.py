"""A checkpoint opened for evaluation, and whether two of them can be compared fairly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from parrot_dist.errors import UserError
from parrot_dist.fusion import Reference
from parrot_dist.reporting.result import BATCH, PLAIN, REFERENCE
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.model import ParrotModel, load_checkpoint, require_reference
from parrot_dist.training.task import Task, check_corpus, open_task


@dataclass(frozen=True)
class Subject:
    """A checkpoint with all that it takes to predict.

    Attributes:
        mode: the way of predicting that makes the headline, a key of `reporting.result.MODES`.
    """

    found: Found
    task: Task
    model: ParrotModel
    reference: Reference | None
    mode: str


def open_subject(url: str, transport: str | None, shards: str | None = None) -> Subject:
    """The checkpoint, or the best one of the run, at `url`.

    Args:
        transport: `batch` (also None) or `reference`: how a head that transports is to predict.
        shards: read the corpus here, and not where it was during training.

    Raises:
        UserError: no checkpoint there, its corpus or encoders are gone or changed, or it has no reference rows.
    """
    found = checkpoint.locate(url)
    config, model, reference = load_checkpoint(found)
    if transport == "reference":
        require_reference(found, model)
    task = open_task(replace(config, data=replace(config.data, shards=shards or config.data.shards)))
    check_corpus(task, found)
    mode = PLAIN if not model.head.needs_reference else REFERENCE if transport == "reference" else BATCH
    return Subject(found, task, model, reference, mode)


def open_rival(subject: Subject, split: str, url: str, transport: str | None) -> Subject:
    """The checkpoint at `url`, which is to predict the utterances of `subject`'s `split` too.

    Raises:
        UserError: see `open_subject`; or the two cannot be compared, and why.
    """
    mine, other = subject.found, checkpoint.locate(url)
    if other.manifest.index_digest != mine.manifest.index_digest:
        raise UserError(
            f"--against: {other.url} was trained on another corpus (index {other.manifest.index_digest[:12]}) than "
            f"{mine.url} (index {mine.manifest.index_digest[:12]}), so there are no utterances to compare the two on"
        )
    if other.manifest.classes != mine.manifest.classes:
        raise UserError(
            f"--against: {other.url} knows the classes {', '.join(other.manifest.classes)}, "
            f"{mine.url} the classes {', '.join(mine.manifest.classes)}; only equal ones can be compared"
        )
    rival = open_subject(url, transport, subject.task.config.data.shards)
    _check_fair(subject, split, rival)
    return rival


def _check_fair(subject: Subject, split: str, rival: Subject) -> None:
    """Compare what the two took the utterances of `split` for.

    Raises:
        UserError: one knows some of them and the other does not, or they call their emotions differently.
    """
    mine, other, rows = subject.found.url, rival.found.url, getattr(subject.task.parts, split)
    apart = rows[~np.isin(rows, getattr(rival.task.parts, split))]
    if len(apart):
        trained = int(np.isin(apart, rival.task.parts.train).sum())
        speakers = ", ".join(sorted(set(subject.task.speakers(apart)))[:5])
        raise UserError(
            f"--against: {len(apart)} of the {len(rows)} utterances of {mine}'s {split} part (by {speakers}) are not "
            f"in that of {other}, which was trained on {trained} of them; compare runs of the same seed and data.split"
        )
    if (subject.task.labels[rows] != rival.task.labels[rows]).any():
        raise UserError(f"--against: {mine} and {other} map labels to classes in different ways (data.emotions)")
