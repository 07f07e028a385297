"""How far the probabilities of predictions can be taken at their word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parrot_dist.reporting.metrics import Counts, Floats

EDGES = np.linspace(0, 1, 16)
"""Of the 15 bins of equal width into which confidences are sorted (Guo et al. 2017); each holds its upper edge."""


@dataclass(frozen=True)
class Calibration:
    """Confidence, the probability of the predicted class, beside how often that class was right, bin by bin.

    Attributes:
        count: (15,) utterances in each bin.
        confidence: (15,) float64 mean confidence, NaN in an empty bin.
        accuracy: (15,) float64 share predicted right, NaN in an empty bin.
    """

    count: Counts
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: the mean gap of both over the utterances (Naeini et al. 2015)."""
        return float(np.nansum(self.count * np.abs(self.accuracy - self.confidence)) / self.count.sum())


def calibrate(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> Calibration:
    """The calibration of `probabilities` (N, C), rows that sum to 1, of predictions for `labels` (N,), N > 0."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.searchsorted(EDGES[1:-1], confidence)
    count = np.bincount(place, minlength=len(EDGES) - 1)
    means = (
        np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        for total in (np.bincount(place, weights, len(count)) for weights in (confidence, right))
    )
    return Calibration(count, *means)
