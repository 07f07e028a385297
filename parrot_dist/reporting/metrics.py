"""Scores of a classification, and how sure one can be of them; everything follows from the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

SUMMARIES = {"accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro-F1", "weighted_f1": "weighted F1"}
"""The fields of `Scores` that are one number, in the order in which people are shown them, and how they are called."""

DIGITS = 9
"""To which scores are compared: equal ones may be sums in another order, and so differ in their last bits."""


@dataclass(frozen=True)
class Scores:
    """How well predictions meet labels; C classes, shares between 0 and 1.

    Attributes:
        accuracy: share of utterances predicted right.
        uar: unweighted average recall, the mean recall over the classes that occur among the labels.
        macro_f1: mean F1 over the classes that occur among the labels or the predictions.
        weighted_f1: mean F1 over the utterances' classes, so that frequent ones weigh more.
        recall: (C,) float64, NaN for a class without labels.
        confusion: (C, C) int64 counts, row = label, column = prediction.
    """

    accuracy: float
    uar: float
    macro_f1: float
    weighted_f1: float
    recall: Floats
    confusion: Counts

    @property
    def utterances(self) -> int:
        """How many were scored."""
        return int(self.confusion.sum())

    @property
    def summaries(self) -> dict[str, float]:
        """Those of `SUMMARIES`, in that order."""
        return {name: getattr(self, name) for name in SUMMARIES}


def score(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Scores:
    """Scores of `predictions` (N,) against `labels` (N,), class numbers from 0 to `num_classes` - 1.

    Raises:
        ValueError: no utterances, unequal lengths, or a class number out of range.
    """
    cells = _cells(labels, predictions, num_classes)
    confusion = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    summaries = {name: float(value) for name, value in _summaries(confusion).items()}
    return Scores(**summaries, recall=_recall(confusion), confusion=confusion.astype(np.int64))


def score_groups(
    labels: ArrayLike, predictions: ArrayLike, groups: Sequence[str], num_classes: int
) -> dict[str, Scores]:
    """The `score` of each group's utterances by its name, sorted; `groups` (N,) says to which one each belongs.

    Raises:
        ValueError: see `score`.
    """
    label, prediction, names = np.asarray(labels), np.asarray(predictions), np.asarray(groups)
    return {str(name): score(label[names == name], prediction[names == name], num_classes) for name in np.unique(names)}


def bootstrap(
    labels: ArrayLike,
    predictions: ArrayLike,
    speakers: Sequence[str] | NDArray[np.str_],
    num_classes: int,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of each of `SUMMARIES` over resampled speakers, see `resample`.

    With fewer than two speakers nothing can be said about other speakers, and the intervals are NaN.

    Raises:
        ValueError: no utterances, unequal lengths, or a class number out of range.
    """
    resampled = resample(labels, predictions, speakers, num_classes, samples, seed)
    if len(set(speakers)) < 2:
        return dict.fromkeys(SUMMARIES, (float("nan"), float("nan")))
    return {name: percentile_interval(values) for name, values in resampled.items()}


def resample(
    labels: ArrayLike,
    predictions: ArrayLike,
    speakers: Sequence[str] | NDArray[np.str_],
    num_classes: int,
    samples: int,
    seed: int,
) -> dict[str, Floats]:
    """Each of `SUMMARIES`, (samples,), of as many speakers drawn with replacement.

    Utterances of one speaker are not independent, so whole speakers are drawn (cluster bootstrap; Davison & Hinkley
    1997, section 3.8; Field & Welsh 2007).

    Args:
        labels: (N,) class numbers.
        predictions: (N,) class numbers.
        speakers: (N,) name of the speaker of each utterance.
        num_classes: C.
        samples: how many resampled sets of speakers.
        seed: the same seed draws the same speakers, whatever the predictions are.

    Raises:
        ValueError: no utterances, unequal lengths, or a class number out of range.
    """
    cells = _cells(labels, predictions, num_classes)
    names, owner = np.unique(np.asarray(speakers), return_inverse=True)
    if len(owner) != len(cells):
        raise ValueError(f"{len(cells)} labels but {len(owner)} speakers")
    size = num_classes**2
    by_speaker = np.bincount(owner * size + cells, minlength=len(names) * size).reshape(len(names), size)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return _summaries((draws @ by_speaker).reshape(samples, num_classes, num_classes))


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of the sample, n - 1) of a score over folds; None of a single fold."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def percentile_interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled `values` (samples,)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _cells(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Counts:
    """(N,) number of the confusion cell, row-major, that each utterance falls in."""
    label = np.asarray(labels, dtype=np.int64)
    prediction = np.asarray(predictions, dtype=np.int64)
    if label.ndim != 1 or label.shape != prediction.shape:
        raise ValueError(f"labels {label.shape} and predictions {prediction.shape} are not of one length")
    if not label.size:
        raise ValueError("there are no utterances to score")
    for name, values in (("label", label), ("prediction", prediction)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"a {name} is outside of 0 to {num_classes - 1}: {values.min()} to {values.max()}")
    return label * num_classes + prediction


def _recall(confusion: Counts) -> Floats:
    """(..., C) recall of every class; NaN without labels."""
    support = confusion.sum(axis=-1)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    recall: Floats = np.divide(right, support, out=np.full(support.shape, np.nan), where=support > 0)
    return recall


def _summaries(confusion: Counts) -> dict[str, Floats]:
    """The `SUMMARIES`, each (...), of confusion matrices (..., C, C) with at least one utterance."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, total = confusion.sum(axis=-1), confusion.sum(axis=(-2, -1))
    seen = support + confusion.sum(axis=-2)
    f1 = np.divide(2 * right, seen, out=np.full(seen.shape, np.nan), where=seen > 0)
    return {
        "accuracy": right.sum(axis=-1) / total,
        "uar": np.nanmean(_recall(confusion), axis=-1),
        "macro_f1": np.nanmean(f1, axis=-1),
        "weighted_f1": np.nansum(support * f1, axis=-1) / total,
    }
