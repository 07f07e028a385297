"""What the paper's tables are made of: embeddings of a corpus by one encoder, and heads trained on them alone.

Both are plain functions of one process, so that any number of them can run side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parrot_dist import storage
from parrot_dist.config import Branch, Config
from parrot_dist.data.frozen import FrozenCorpus, has_part, missing_parts
from parrot_dist.encoders import Embedded, load_encoder
from parrot_dist.reporting.metrics import DIGITS, Scores, score
from parrot_dist.training.inference import Place, infer
from parrot_dist.training.loop import Loop
from parrot_dist.training.model import ParrotModel, build_configured_head
from parrot_dist.training.prefix import entry_key, fill_part, from_own_start
from parrot_dist.training.task import open_task


@dataclass(frozen=True)
class Embeddings:
    """Every utterance of a corpus as one encoder hears it: where they are kept, and how wide they are."""

    entry: str
    dim: int


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: the scores of its test speakers, and how many epochs were trained."""

    scores: Scores
    epochs: int


def embed(config: Config, encoder: Branch, share: int, shares: int) -> Embeddings:
    """Compute what is missing of the embeddings of the corpus of `config`: every `shares`-th part from `share` on.

    Raises:
        UserError: the encoder does not load, or the corpus does not fit the settings.
    """
    torch.set_num_threads(config.scale.cpus_per_worker)
    task, place = open_task(config), Place.alone()
    loaded = load_encoder(encoder.source, readout=encoder.readout, revision=encoder.revision)
    loaded.unfreeze("none")
    entry = storage.join(config.cache_url, entry_key(task, loaded))
    missing = [part for part in missing_parts(entry, len(task.index)) if part % shares == share]
    loaded.to(place.device)
    for part in from_own_start(missing, config.name):
        if not has_part(entry, part):  # another table may be at it too
            fill_part(task, loaded, entry, part, place)
    return Embeddings(entry, loaded.dim)


def train_cell(config: Config, embeddings: Mapping[str, Embeddings]) -> Outcome:
    """Train the head of `config` on `embeddings` by branch, and test its best epoch on the speakers left out.

    The same order, loss and choice of the best epoch as in a run, which also predicts in batches as the paper does.

    Raises:
        UserError: the settings, the data or the numbers do not allow it.
    """
    # A fixed number of threads, as in a run: the same cell gives the same bits.
    torch.set_num_threads(config.scale.cpus_per_worker)
    task, place = open_task(config), Place.alone()
    feeds = {branch: FrozenCorpus.open(one.entry, task.index) for branch, one in embeddings.items()}
    torch.manual_seed(config.seed)
    head = build_configured_head(config, {branch: one.dim for branch, one in embeddings.items()})
    encoders = {branch: Embedded(one.dim) for branch, one in embeddings.items()}
    model = ParrotModel(encoders, head).to(place.device)
    trial = Trial(task, model, lambda: feeds, place, Silent(), lambda record: None)
    trial.run(None)
    model = trial.at_best()
    rows, logits, skipped = infer(task, feeds, task.parts.test, place, lambda inputs, sizes: model(inputs, None, sizes))
    task.refuse_broken(skipped, len(task.parts.test))
    return Outcome(score(task.labels[rows], logits.argmax(1), len(config.data.classes)), trial.state.epoch)


class Trial(Loop):
    """A training whose only checkpoint is its best epoch, in memory: too short to be worth going on with."""

    best: tuple[float, dict[str, Tensor]] | None = None

    def save(self, score: float | None, hurry: bool = False) -> None:
        """Remember the trained parameters if this epoch's `score` is the highest, the earliest of equals."""
        if score is not None and (self.best is None or round(score, DIGITS) > self.best[0]):
            self.best = round(score, DIGITS), {name: x.detach().clone() for name, x in self.model.trained().items()}

    def at_best(self) -> ParrotModel:
        """The model as it was after its best epoch, in eval mode."""
        if self.best is not None:
            self.model.load_state_dict(self.best[1], strict=False)
        self.model.eval()
        return self.model


class Silent:
    """Nobody listens to a cell."""

    def put(self, kind: str, **data: Any) -> None:
        """Let an event pass."""

    def stop_wanted(self) -> bool:
        """Never: a cell is ended with its process."""
        return False

    def notice(self) -> None:
        """None: nothing of a cell is saved before its end."""

    def at(self, step: int | None) -> None:
        """Let the step pass."""
