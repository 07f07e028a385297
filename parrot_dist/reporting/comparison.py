"""Whether one way of predicting the same utterances is better than another, or only looks so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from parrot_dist.reporting.metrics import DIGITS, SUMMARIES, percentile_interval, resample, score
from parrot_dist.reporting.result import Result


@dataclass(frozen=True)
class Difference:
    """One score of the first predictions minus that of the second.

    Attributes:
        value: between -1 and 1.
        interval: 95 %, over resampled speakers; NaN with fewer than two.
        p: two-sided, under no difference, by the same resampling; NaN with fewer than two speakers.
    """

    value: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two predictions of the same utterances.

    Attributes:
        differences: each of `SUMMARIES`.
        only_first: utterances that the first alone predicted right.
        only_second: utterances that the second alone predicted right.
        mcnemar: exact two-sided p-value of McNemar's test (1947): under no difference the utterances that only one
            got right are tosses of a fair coin. It takes utterances for independent, which one speaker's are not.
    """

    differences: dict[str, Difference]
    only_first: int
    only_second: int
    mcnemar: float


@dataclass(frozen=True)
class Against:
    """Another checkpoint on the same utterances: its URL, its own scores, and how the evaluated one differs."""

    checkpoint: str
    result: Result
    comparison: Comparison


def compare(
    labels: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    speakers: Sequence[str],
    num_classes: int,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare the class numbers `first` (N,) and `second` (N,) for `labels` (N,), spoken by `speakers` (N,).

    The bootstrap is paired: both are scored on the same drawn speakers (Efron & Tibshirani 1993, chapters 15 and 16).

    Raises:
        ValueError: see `metrics.resample`.
    """
    draws = [resample(labels, one, speakers, num_classes, samples, seed) for one in (first, second)]
    scores = [score(labels, one, num_classes) for one in (first, second)]
    alone = len(set(speakers)) < 2
    differences = {}
    for name in SUMMARIES:
        value = getattr(scores[0], name) - getattr(scores[1], name)
        gaps = np.full(samples, np.nan) if alone else (draws[0][name] - draws[1][name]).round(DIGITS)
        differences[name] = Difference(value, percentile_interval(gaps), _p(gaps))
    only_first = int(((first == labels) & (second != labels)).sum())
    only_second = int(((second == labels) & (first != labels)).sum())
    return Comparison(differences, only_first, only_second, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test; 1 where the two never differ."""
    differ = only_first + only_second
    return float(binomtest(only_first, differ).pvalue) if differ else 1.0


def _p(gaps: NDArray[np.float64]) -> float:
    """Twice the share of resampled `gaps` on the rarer side of 0; the observed sample counts as one of them."""
    if np.isnan(gaps).any():
        return float("nan")
    rarer = min((gaps <= 0).sum(), (gaps >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(gaps) + 1)))
