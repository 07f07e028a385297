"""What a configuration means on a corpus: the index, its classes and its split, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parrot_dist import storage
from parrot_dist.config import Config, Data
from parrot_dist.data.augmentation import Augmentation
from parrot_dist.data.index import Index, check_index, read_index
from parrot_dist.data.plan import EpochPlan, Rows, sequential_epoch, shuffled_epoch
from parrot_dist.data.split import Parts, count_folds, split_rows
from parrot_dist.data.stream import Corpus, Skipped
from parrot_dist.errors import UserError
from parrot_dist.training.checkpoint import Found

LEFT_OUT = -1


@dataclass(frozen=True)
class Task:
    """The samples of a run.

    Attributes:
        labels: (n,) class number of each row of the index; LEFT_OUT where its label is mapped to nothing.
        parts: which rows train, validate and test.
    """

    config: Config
    index: Index
    corpus: Corpus
    labels: Rows
    parts: Parts

    def too_many(self, broken: int, total: int) -> bool:
        """Whether `broken` of `total` utterances are more than `data.max_broken` allows."""
        return broken > self.config.data.max_broken * total

    def complaint(self, broken: int, total: int, keys: list[str]) -> str:
        """What to tell the person whose utterances `keys` cannot be read."""
        return (
            f"data.max_broken: {broken} of {total} utterances of {self.config.data.shards} cannot be read, more than "
            f"{self.config.data.max_broken:.1%}: {', '.join(sorted(keys)[:20])}"
        )

    def refuse_broken(self, skipped: list[Skipped], total: int) -> None:
        """Check the samples that one pass over `total` utterances had to skip.

        Raises:
            UserError: they are too many.
        """
        if self.too_many(len(skipped), total):
            raise UserError(self.complaint(len(skipped), total, [one.key for one in skipped]))

    def speakers(self, rows: Rows) -> list[str]:
        """Who speaks in each of `rows`; a name belongs to its corpus."""
        return self.index.speakers(rows)

    def known_speakers(self, rows: Rows) -> int:
        """How many of those who speak in `rows` are training speakers."""
        return len(set(self.speakers(rows)) & set(self.speakers(self.parts.train)))

    @property
    def folds(self) -> int:
        """How many folds a cross-validation of it has.

        Raises:
            UserError: as `count_folds`.
        """
        return count_folds(self.index, np.flatnonzero(self.labels != LEFT_OUT), self.config.data.split)

    def training_plan(self, epoch: int) -> EpochPlan:
        """Epoch `epoch`, counted from 0, of training."""
        data = self.config.data
        return shuffled_epoch(
            self.corpus.layout,
            self.parts.train,
            seed=self.config.seed,
            epoch=epoch,
            lanes=data.lanes,
            batch_size=self.config.optim.batch_size,
            window=data.window,
            drop_last=data.last_batch == "drop",
            lengths=self.index.samples if data.bucketing else None,
            labels=self.labels if data.sampling == "balanced" else None,
        )

    def augmentation(self, epoch: int) -> Augmentation | None:
        """How epoch `epoch` of training changes waveforms; None: not at all."""
        augment = self.config.data.augment
        if not augment.on:
            return None
        return Augmentation(self.config.seed, epoch, augment.noise, augment.gain_db, augment.speed)

    def evaluation_plan(self, rows: Rows) -> EpochPlan:
        """Every one of `rows` once."""
        data = self.config.data
        return sequential_epoch(
            self.corpus.layout, rows, lanes=data.lanes, batch_size=self.config.optim.batch_size, window=data.window
        )


def open_task(config: Config) -> Task:
    """Read the index of `config.data.shards` and split it.

    Raises:
        UserError: no corpus there, labels that the classes do not cover, too few speakers or too few samples.
    """
    index = read_index(config.data.shards)
    labels = number_labels(index, config.data)
    parts = split_rows(index, np.flatnonzero(labels != LEFT_OUT), config.data.split, config.seed)
    if config.data.last_batch == "drop" and len(parts.train) < config.optim.batch_size:
        raise UserError(
            f"data.last_batch: {config.data.shards} has {len(parts.train)} training utterances, fewer than one global "
            f"batch of {config.optim.batch_size}, and dropping that leaves no step; use data.last_batch=keep"
        )
    return Task(config, index, open_corpus(config.data, index), labels, parts)


def open_corpus(data: Data, index: Index) -> Corpus:
    """The shards of `index` as a source of utterances, kept on the disk of this node if that is wanted."""
    corpus = Corpus.of(data.shards, index, data.max_seconds)
    if not data.node_cache_gb:
        return corpus
    folder = Path(data.node_cache) if data.node_cache else storage.node_folder()
    return corpus.kept_on_node(folder / "shards.cache", int(data.node_cache_gb * 1e9), index)


def number_labels(index: Index, data: Data) -> Rows:
    """The class number (n,) of every utterance, by `data.classes` and `data.emotions`; LEFT_OUT where it has none.

    Raises:
        UserError: labels that neither knows, or classes that nobody speaks.
    """
    number = {name: i for i, name in enumerate(data.classes)}
    number |= {label: LEFT_OUT if name is None else number[name] for label, name in data.emotions.items()}
    given = set(index.label.tolist())
    if unheard := sorted(set(data.emotions) - given):
        raise UserError(
            f"data.emotions: no utterance of {data.shards} is labelled {', '.join(unheard)}; "
            f"its labels are {', '.join(sorted(given))}"
        )
    if strange := sorted(given - set(number)):
        raise UserError(
            f"data.classes: {data.shards} holds utterances labelled {', '.join(strange)}, "
            f"which is not among {', '.join(data.classes)}; data.emotions maps labels to classes, or to nothing"
        )
    if silent := sorted(set(range(len(data.classes))) - {number[label] for label in given}):
        raise UserError(
            f"data.classes: no utterance of {data.shards} is labelled {', '.join(data.classes[i] for i in silent)}; "
            f"its labels are {', '.join(sorted(given))}"
        )
    return np.array([number[label] for label in index.label.tolist()], np.int64)


def check_task(task: Task) -> None:
    """Compare the index with the shards on storage.

    Raises:
        UserError: they do not belong together.
    """
    check_index(task.config.data.shards, task.index)


def check_corpus(task: Task, found: Found) -> None:
    """Compare the corpus with the one that a checkpoint was trained on.

    Raises:
        UserError: it is another one now.
    """
    if task.index.digest != found.manifest.index_digest:
        raise UserError(f"data.shards: {task.config.data.shards} has changed since {found.url} was trained on it")
