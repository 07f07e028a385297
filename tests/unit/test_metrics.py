from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from parrot_dist.reporting.metrics import SUMMARIES, bootstrap, score, score_groups

CLASSES = 5


@st.composite
def classified(draw):
    """Labels and predictions (N,) of 5 classes, of which some may not occur."""
    count = draw(st.integers(1, 60))
    values = arrays(np.int64, count, elements=st.integers(0, CLASSES - 1))
    return draw(values), draw(values)


def speakers_of(count, number=4):
    return np.array([f"speaker{index % number}" for index in range(count)])


@given(classified())
def test_scores_are_those_of_scikit_learn(pair):
    labels, predictions = pair
    scores = score(labels, predictions, CLASSES)
    present = np.unique(labels)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predictions))
    assert scores.uar == pytest.approx(
        recall_score(labels, predictions, labels=present, average="macro", zero_division=0)
    )
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0))
    assert scores.weighted_f1 == pytest.approx(f1_score(labels, predictions, average="weighted", zero_division=0))
    assert scores.utterances == len(labels)
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(labels, predictions, labels=np.arange(CLASSES)))
    assert scores.confusion.dtype == np.int64
    np.testing.assert_array_equal(np.isnan(scores.recall), ~np.isin(np.arange(CLASSES), present))
    assert np.nanmean(scores.recall) == pytest.approx(scores.uar)


@given(classified(), st.randoms(use_true_random=False))
def test_neither_the_order_of_utterances_nor_the_names_of_classes_matter(pair, random):
    labels, predictions = pair
    order = list(range(len(labels)))
    random.shuffle(order)
    renamed = list(range(CLASSES))
    random.shuffle(renamed)
    names = np.array(renamed)
    before = score(labels, predictions, CLASSES)
    after = score(names[labels[order]], names[predictions[order]], CLASSES)
    for name in SUMMARIES:
        assert getattr(after, name) == pytest.approx(getattr(before, name))
    np.testing.assert_array_equal(after.recall[names], before.recall)


@given(classified(), st.integers(2, 4))
def test_uar_does_not_depend_on_how_often_a_class_occurs(pair, times):
    labels, predictions = pair
    repeats = np.where(labels == labels[0], times, 1)
    assert score(np.repeat(labels, repeats), np.repeat(predictions, repeats), CLASSES).uar == pytest.approx(
        score(labels, predictions, CLASSES).uar
    )


@given(classified())
def test_a_group_is_scored_as_if_it_were_alone(pair):
    labels, predictions = pair
    groups = speakers_of(len(labels))
    scores = score_groups(labels, predictions, groups.tolist(), CLASSES)
    assert list(scores) == sorted(set(groups))
    for name, part in scores.items():
        alone = score(labels[groups == name], predictions[groups == name], CLASSES)
        np.testing.assert_array_equal(part.confusion, alone.confusion)
        assert part.uar == alone.uar
    total = sum(part.confusion for part in scores.values())
    np.testing.assert_array_equal(total, score(labels, predictions, CLASSES).confusion)


def test_a_perfect_prediction_of_some_classes_scores_one():
    scores = score([0, 2, 2], [0, 2, 2], 4)
    assert [getattr(scores, name) for name in SUMMARIES] == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "predictions"), [([], []), ([0, 1], [0]), ([0, 5], [0, 1]), ([0, 1], [0, -1]), ([[0]], [[0]])]
)
def test_what_cannot_be_scored_is_refused(labels, predictions):
    with pytest.raises(ValueError, match=r"utterances|length|outside"):
        score(labels, predictions, CLASSES)


@given(classified(), st.integers(0, 5))
def test_intervals_are_ordered_shares_and_repeatable(pair, seed):
    labels, predictions = pair
    speakers = speakers_of(len(labels), 1 + len(labels) // 2)
    intervals = bootstrap(labels, predictions, speakers, CLASSES, samples=50, seed=seed)
    np.testing.assert_equal(bootstrap(labels, predictions, speakers, CLASSES, samples=50, seed=seed), intervals)
    for low, high in intervals.values():
        assert np.isnan(low) == np.isnan(high) == (len(set(speakers)) < 2)
        assert np.isnan(low) or 0 <= low <= high <= 1


def test_speakers_are_resampled_and_not_utterances():
    """Speakers that are all right or all wrong: the interval is that of the mean of 8 coins, however many clips."""
    right = np.repeat([1, 0, 1, 0, 1, 0, 1, 0], 500)
    labels = np.zeros(len(right), dtype=np.int64)
    speakers = np.repeat([f"speaker{index}" for index in range(8)], 500)
    low, high = bootstrap(labels, 1 - right, speakers, 2, samples=4000)["accuracy"]
    assert (low, high) == (0.125, 0.875)  # binomial(8, 1/2) at 2.5 and 97.5 %


def test_speakers_that_are_alike_leave_no_doubt():
    labels, predictions = np.tile([0, 1, 2, 0], 6), np.tile([0, 1, 2, 1], 6)
    intervals = bootstrap(labels, predictions, np.repeat(list("abcdef"), 4), 3)
    assert intervals["accuracy"] == pytest.approx((0.75, 0.75))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        skill = np.clip(rng.normal(0.6, 0.1, 30), 0, 1)
        labels = np.zeros(30 * 20, dtype=np.int64)
        wrong = (rng.random((30, 20)) > skill[:, None]).astype(np.int64).ravel()
        low, high = bootstrap(labels, wrong, np.repeat(np.arange(30).astype(str), 20), 2, 300, trial)["accuracy"]
        covered += low <= 0.6 <= high
    assert 85 <= covered <= 99


def test_missing_speakers_are_refused():
    with pytest.raises(ValueError, match="2 labels but 1 speakers"):
        bootstrap([0, 1], [0, 1], ["a"], 2)


def test_ten_thousand_utterances_take_a_moment():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 6, (2, 10_000))
    started = time.process_time()
    bootstrap(labels, predictions, rng.integers(0, 90, 10_000).astype(str), 6)
    assert time.process_time() - started < 2
