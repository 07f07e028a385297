"""A checkpoint on the utterances of a split: embedded once, predicted in every way that its head knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parrot_dist.data.plan import Rows
from parrot_dist.data.stream import Skipped
from parrot_dist.fusion import Head, Reference
from parrot_dist.reporting.metrics import Scores, bootstrap, score
from parrot_dist.reporting.predictions import predictions_table, to_parquet
from parrot_dist.reporting.prosody import prosody_baseline, prosody_features
from parrot_dist.reporting.report import BATCH, PLAIN, REFERENCE, Result
from parrot_dist.training.inference import Place, infer
from parrot_dist.training.model import Inputs, ParrotModel
from parrot_dist.training.task import Task


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint makes of some utterances.

    Attributes:
        rows: (n,) the utterances, as rows of the index.
        logits: way of predicting (`reporting.report.MODES`) -> (n, C) float32.
        skipped: utterances that could not be read.
    """

    rows: Rows
    logits: dict[str, np.ndarray]
    skipped: list[Skipped]

    def results(self, task: Task) -> list[Result]:
        """The scores of every way of predicting."""
        labels, speakers = task.labels[self.rows], task.speakers(self.rows)
        classes = len(task.config.data.classes)
        return [
            Result(
                mode,
                score(labels, logits.argmax(1), classes),
                bootstrap(labels, logits.argmax(1), speakers, classes, seed=task.config.seed),
            )
            for mode, logits in self.logits.items()
        ]


def evaluate(task: Task, model: ParrotModel, reference: Reference | None, rows: Rows, place: Place) -> Evaluation:
    """`model` on `rows`: batch-coupled in the global batches of the evaluation plan, as in training, and, given a
    `reference`, each utterance alone. A head that transports nothing has but one way. In float32, like `Predictor`.

    Raises:
        UserError: more than `data.max_broken` of `rows` cannot be read.
    """
    dims = [encoder.dim for _, encoder in model.branches()]

    def embed(inputs: Inputs, _: list[int]) -> Tensor:
        return torch.cat(model.embed(inputs), 1)

    branches = [name for name, _ in model.branches()]
    found, values, skipped = infer(task, dict.fromkeys(branches, task.corpus), rows, place, embed, "float32")
    task.refuse_broken(skipped, len(rows))
    parts = dict(zip(branches, torch.split(torch.from_numpy(values), dims, 1), strict=True))
    empty = torch.empty(len(found), 0)
    mamba, attention = (parts.get(branch, empty).to(place.device) for branch in ("mamba", "attention"))
    head = model.head
    if not head.needs_reference:
        return Evaluation(found, {PLAIN: _numpy(head.predict_alone(mamba, attention, None))}, skipped)
    logits = {BATCH: _predict_coupled(task, head, found, mamba, attention)}
    if reference is not None:
        logits[REFERENCE] = _numpy(head.predict_alone(mamba, attention, reference.to(place.device)))
    return Evaluation(found, logits, skipped)


@torch.no_grad()
def _predict_coupled(task: Task, head: Head, rows: Rows, mamba: Tensor, attention: Tensor) -> np.ndarray:
    plan = task.evaluation_plan(rows)
    logits = np.empty((len(rows), len(task.config.data.classes)), np.float32)
    for step in range(plan.steps):
        places = np.searchsorted(rows, plan.global_batch(step))
        logits[places] = _numpy(head(mamba[places], attention[places]))
    return logits


def evaluate_prosody(task: Task, rows: Rows, place: Place) -> Scores:
    """What a plain classifier on pitch, energy and timing statistics of the training utterances makes of `rows`."""

    def features(inputs: Inputs, _: list[int]) -> Tensor:
        waveforms = [item.cpu().numpy() for item in inputs["audio"] if isinstance(item, Tensor)]
        return torch.from_numpy(np.stack([prosody_features(waveform) for waveform in waveforms]))

    audio = {"audio": task.corpus}
    train, train_features, _ = infer(task, audio, task.parts.train, place, features)
    found, test_features, _ = infer(task, audio, rows, place, features)
    predictions = prosody_baseline(
        train_features.astype(np.float64), task.labels[train], test_features.astype(np.float64)
    )
    return score(task.labels[found], predictions, len(task.config.data.classes))


def dump_predictions(task: Task, rows: Rows, logits: np.ndarray) -> bytes:
    """The predictions of `rows` (n,) by their logits (n, C), as Parquet."""
    index = task.index
    table = predictions_table(
        index.key[rows].tolist(),
        index.speaker[rows].tolist(),
        index.language[rows].tolist(),
        index.corpus[rows].tolist(),
        task.labels[rows],
        _numpy(torch.from_numpy(logits).softmax(1)),
        task.config.data.classes,
    )
    return to_parquet(table)


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    return array
