"""A checkpoint on the utterances of a split: embedded once, predicted in every way that its head knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parrot_dist.data.plan import Rows
from parrot_dist.data.stream import Skipped
from parrot_dist.fusion import Head, Reference
from parrot_dist.reporting.metrics import Scores, score
from parrot_dist.reporting.predictions import predictions_table, to_parquet
from parrot_dist.reporting.prosody import prosody_baseline, prosody_features
from parrot_dist.reporting.result import BATCH, PLAIN, REFERENCE, Result, Utterances, judge
from parrot_dist.training.inference import Place, infer
from parrot_dist.training.model import Inputs, ParrotModel
from parrot_dist.training.task import Task


@dataclass(frozen=True)
class EmbeddedRows:
    """What the encoders make of some utterances.

    Attributes:
        rows: (n,) those that could be read, as rows of the index, ascending.
        mamba: (n, Dm) float32, on the device of the model; of no width for a branch that is not there, and for a head
            over frames, which are too many to keep.
        attention: (n, Da) float32, likewise.
        features: (n, width) float32, what a head over frames makes of them; of no width for others.
        prosody: (n, F) float32 `prosody.prosody_features`, of no width where they were not asked for.
        skipped: utterances that could not be read.
    """

    rows: Rows
    mamba: Tensor
    attention: Tensor
    features: Tensor
    prosody: np.ndarray
    skipped: list[Skipped]

    def batches(self, task: Task) -> Iterator[Rows]:
        """Places (b,) in `rows` of each global batch of the evaluation plan, as in training's validation."""
        plan = task.evaluation_plan(self.rows)
        for step in range(plan.steps):
            yield np.searchsorted(self.rows, plan.global_batch(step))


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint makes of some utterances.

    Attributes:
        rows: (n,) the utterances, as rows of the index.
        logits: way of predicting (`reporting.result.MODES`) -> (n, C) float32.
        skipped: utterances that could not be read.
    """

    rows: Rows
    logits: dict[str, np.ndarray]
    skipped: list[Skipped]

    def result(self, task: Task, mode: str) -> Result:
        """All that is to be said about the predictions made in the way `mode`."""
        return judge(mode, _utterances(task, self.rows), self.probabilities(mode), task.config.seed)

    def probabilities(self, mode: str) -> np.ndarray:
        """(n, C) float32 of the predictions made in the way `mode`."""
        return _numpy(torch.from_numpy(self.logits[mode]).softmax(1))


def evaluate(task: Task, model: ParrotModel, reference: Reference | None, rows: Rows, place: Place) -> Evaluation:
    """`model` on `rows`, see `embed` and `predict`.

    Raises:
        UserError: more than `data.max_broken` of `rows` cannot be read.
    """
    return predict(task, model.head, reference, embed(task, model, rows, place))


def embed(task: Task, model: ParrotModel, rows: Rows, place: Place, prosody: bool = False) -> EmbeddedRows:
    """The embeddings of `rows`, in float32 like those of `Predictor`; with their `prosody` from the same reading.

    Raises:
        UserError: more than `data.max_broken` of `rows` cannot be read.
    """
    dims = {name: encoder.dim for name, encoder in model.branches()}
    over_frames = model.head.over_frames

    def compute(inputs: Inputs, _: list[int]) -> Tensor:
        mamba, attention = model.embed(inputs)
        parts = [model.head.features(mamba, attention, None)] if over_frames else [mamba, attention]
        return torch.cat([*parts, _prosody(inputs).to(parts[0])] if prosody else parts, 1)

    found, values, skipped = infer(task, dict.fromkeys(dims, task.corpus), rows, place, compute, "float32")
    task.refuse_broken(skipped, len(rows))
    width = model.head.dense.in_features
    widths = [0, 0, width] if over_frames else [dims.get("mamba", 0), dims.get("attention", 0), 0]
    *parts, measured = np.split(values, np.cumsum(widths), 1)
    mamba, attention, features = (torch.from_numpy(part).to(place.device) for part in parts)
    return EmbeddedRows(found, mamba, attention, features, measured, skipped)


def predict(task: Task, head: Head, reference: Reference | None, embedded: EmbeddedRows) -> Evaluation:
    """Logits of `embedded`: batch-coupled in the global batches of the evaluation plan, as in training, and, given a
    `reference`, each utterance alone. A head that transports nothing has but one way.
    """
    mamba, attention = embedded.mamba, embedded.attention
    if head.over_frames:
        with torch.no_grad():
            logits = {PLAIN: _numpy(head.classify(embedded.features))}
        return Evaluation(embedded.rows, logits, embedded.skipped)
    if not head.needs_reference:
        logits = {PLAIN: _numpy(head.predict_alone(mamba, attention, None))}
        return Evaluation(embedded.rows, logits, embedded.skipped)
    logits = {BATCH: _predict_coupled(task, head, embedded)}
    if reference is not None:
        logits[REFERENCE] = _numpy(head.predict_alone(mamba, attention, reference.to(mamba.device)))
    return Evaluation(embedded.rows, logits, embedded.skipped)


@torch.no_grad()
def _predict_coupled(task: Task, head: Head, embedded: EmbeddedRows) -> np.ndarray:
    logits = np.empty((len(embedded.rows), len(task.config.data.classes)), np.float32)
    for places in embedded.batches(task):
        logits[places] = _numpy(head(embedded.mamba[places], embedded.attention[places]))
    return logits


def score_prosody(task: Task, embedded: EmbeddedRows, place: Place) -> Scores:
    """What a plain classifier on pitch, energy and timing statistics of the training utterances makes of `embedded`,
    which must have its own.
    """
    train, features, _ = infer(
        task, {"audio": task.corpus}, task.parts.train, place, lambda inputs, _: _prosody(inputs)
    )
    predictions = prosody_baseline(features.astype(np.float64), task.labels[train], embedded.prosody.astype(np.float64))
    return score(task.labels[embedded.rows], predictions, len(task.config.data.classes))


def _prosody(inputs: Inputs) -> Tensor:
    """(b, F) float64 prosody of the waveforms that any branch is fed with."""
    waveforms = [item.cpu().numpy() for item in next(iter(inputs.values())) if isinstance(item, Tensor)]
    return torch.from_numpy(np.stack([prosody_features(waveform) for waveform in waveforms]))


def _utterances(task: Task, rows: Rows) -> Utterances:
    index = task.index
    return Utterances(
        task.labels[rows], task.speakers(rows), index.language[rows].tolist(), index.corpus[rows].tolist()
    )


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
