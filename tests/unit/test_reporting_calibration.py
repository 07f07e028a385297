from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from parrot_dist.reporting.calibration import EDGES, calibrate

BINS = len(EDGES) - 1


@st.composite
def predicted(draw):
    """Labels (N,) of 4 classes and probabilities (N, 4); low temperatures leave some bins empty."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, scale = draw(st.integers(1, 200)), draw(st.sampled_from([0.1, 1.0, 10.0]))
    shares = np.exp(rng.normal(0, scale, (count, 4)))
    return rng.integers(0, 4, count), shares / shares.sum(1, keepdims=True)


@given(predicted())
def test_the_bins_are_those_of_scikit_learn(pair):
    labels, probabilities = pair
    calibration = calibrate(labels, probabilities)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=BINS)
    there = calibration.count > 0
    np.testing.assert_allclose(calibration.accuracy[there], accuracy)
    np.testing.assert_allclose(calibration.confidence[there], confidence)
    assert np.isnan(calibration.accuracy[~there]).all()
    assert calibration.count.sum() == len(labels)


@given(predicted(), st.randoms(use_true_random=False))
def test_the_error_is_a_share_and_does_not_depend_on_the_order(pair, random):
    labels, probabilities = pair
    order = list(range(len(labels)))
    random.shuffle(order)
    ece = calibrate(labels, probabilities).ece
    assert 0 <= ece <= 1
    assert calibrate(labels[order], probabilities[order]).ece == pytest.approx(ece)


def test_being_sure_and_wrong_is_the_worst_and_right_the_best():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert calibrate(np.array([1, 2, 0, 1]), sure).ece == 1
    assert calibrate(np.array([0, 1, 2, 0]), sure).ece == 0


def test_the_error_is_the_gap_weighted_by_utterances():
    # Three utterances 90 % sure of which two are right, and one 50 % sure that is wrong.
    probabilities = np.array([[0.9, 0.1]] * 3 + [[0.5, 0.5]])
    expected = (3 * abs(2 / 3 - 0.9) + 0.5) / 4
    assert calibrate(np.array([0, 0, 1, 1]), probabilities).ece == pytest.approx(expected)
