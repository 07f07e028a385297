"""What a configuration means on a corpus: the index, its classes and its split, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parrot_dist.config import Config, Data
from parrot_dist.data.index import Index, check_index, read_index
from parrot_dist.data.plan import EpochPlan, Rows, sequential_epoch, shuffled_epoch
from parrot_dist.data.split import Parts, split_rows
from parrot_dist.data.stream import Corpus, Skipped
from parrot_dist.errors import UserError
from parrot_dist.training.checkpoint import Found

LEFT_OUT = -1


@dataclass(frozen=True)
class Task:
    """The samples of a run.

    Attributes:
        labels: (n,) class number of each row of the index; LEFT_OUT for a row that is in no part.
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
        return [f"{self.index.corpus[row]}/{self.index.speaker[row]}" for row in rows]

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
        )

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
    if len(parts.train) < config.optim.batch_size:
        raise UserError(
            f"optim.batch_size: {config.data.shards} has {len(parts.train)} training utterances, "
            f"fewer than one global batch of {config.optim.batch_size}"
        )
    return Task(config, index, Corpus.of(config.data.shards, index, config.data.max_seconds), labels, parts)


def number_labels(index: Index, data: Data) -> Rows:
    """The class number (n,) of every utterance, by `data.classes` and `data.emotions`; LEFT_OUT where it has none.

    Raises:
        UserError: labels that neither knows, or classes that nobody speaks.
    """
    number = {name: i for i, name in enumerate(data.classes)}
    number |= {label: LEFT_OUT if name is None else number[name] for label, name in data.emotions.items()}
    given = set(index.label.tolist())
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
