"""All that is said about the predictions of one split, made one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parrot_dist.reporting.calibration import Calibration, calibrate
from parrot_dist.reporting.metrics import Scores, bootstrap, score, score_groups

BATCH, REFERENCE, PLAIN = "batch-coupled", "reference", "model"
MODES = {
    BATCH: "the transport plan spans the evaluated batch, as in the paper: a prediction depends on its neighbours",
    REFERENCE: "each utterance alone is transported to training rows kept in the checkpoint: no neighbours matter",
    PLAIN: "no transport between utterances: a prediction depends on its utterance alone",
}
"""How predictions were made, and what that means to a reader."""


@dataclass(frozen=True)
class Utterances:
    """What is known of N utterances.

    Attributes:
        labels: (N,) class numbers.
        speakers: (N,) names, unique over all corpora.
        languages: (N,) codes.
        corpora: (N,) names.
    """

    labels: NDArray[np.int64]
    speakers: Sequence[str]
    languages: Sequence[str]
    corpora: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """How well predictions met the labels.

    Attributes:
        mode: how they were made, a key of `MODES`.
        intervals: 95 % intervals of the scores over speakers, see `metrics.bootstrap`.
        speakers: scores of each speaker's utterances, by name; so the other two.
    """

    mode: str
    scores: Scores
    intervals: Mapping[str, tuple[float, float]]
    calibration: Calibration
    speakers: Mapping[str, Scores]
    languages: Mapping[str, Scores]
    corpora: Mapping[str, Scores]


def judge(mode: str, utterances: Utterances, probabilities: NDArray[np.float32], seed: int) -> Result:
    """The result of `probabilities` (N, C) for `utterances`; `seed` is that of the intervals.

    Raises:
        ValueError: there are no utterances, or not as many as probabilities.
    """
    labels, predictions, classes = utterances.labels, probabilities.argmax(1), probabilities.shape[1]
    return Result(
        mode=mode,
        scores=score(labels, predictions, classes),
        intervals=bootstrap(labels, predictions, utterances.speakers, classes, seed=seed),
        calibration=calibrate(labels, probabilities),
        speakers=score_groups(labels, predictions, utterances.speakers, classes),
        languages=score_groups(labels, predictions, utterances.languages, classes),
        corpora=score_groups(labels, predictions, utterances.corpora, classes),
    )
