from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.reporting.comparison import compare, mcnemar
from parrot_dist.reporting.metrics import SUMMARIES, score

CLASSES, SAMPLES = 3, 200


@st.composite
def predicted_twice(draw):
    """Labels, two predictions (N,) and speakers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, speakers = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    return *rng.integers(0, CLASSES, (3, count)), [f"s{index % speakers}" for index in range(count)]


@given(predicted_twice())
def test_the_difference_is_that_of_the_scores_and_turns_round_with_the_order(case):
    labels, first, second, speakers = case
    forth = compare(labels, first, second, speakers, CLASSES, SAMPLES)
    back = compare(labels, second, first, speakers, CLASSES, SAMPLES)
    assert (forth.only_first, forth.only_second) == (back.only_second, back.only_first)
    assert forth.mcnemar == back.mcnemar
    for name in SUMMARIES:
        one, other = forth.differences[name], back.differences[name]
        expected = getattr(score(labels, first, CLASSES), name) - getattr(score(labels, second, CLASSES), name)
        assert one.value == expected == -other.value
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), nan_ok=True)
        assert one.p == pytest.approx(other.p, nan_ok=True)
        assert np.isnan(one.p) == (len(set(speakers)) < 2)


@given(predicted_twice())
def test_predictions_do_not_differ_from_themselves(case):
    labels, first, _, _ = case
    same = compare(labels, first, first, [f"s{index % 2}" for index in range(len(labels))], CLASSES, SAMPLES)
    assert {(one.value, one.interval, one.p) for one in same.differences.values()} == {(0.0, (0.0, 0.0), 1.0)}
    assert (same.only_first, same.only_second, same.mcnemar) == (0, 0, 1.0)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_toss_of_coins(one, other):
    differ = one + other
    tail = sum(comb(differ, k) for k in range(min(one, other) + 1)) / 2**differ
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail))


def test_drawing_the_same_speakers_sees_what_is_the_same_for_all_of_them():
    """Speakers differ by 80 points and checkpoints by 10, for every speaker: only the pairing can tell."""
    speakers = np.repeat([f"s{number}" for number in range(8)], 20)
    labels = np.zeros(160, np.int64)
    place = np.arange(160) % 20
    wrong = np.repeat(np.arange(8) * 2, 20) + 2  # of 20 utterances
    first, second = (place < wrong - 2).astype(np.int64), (place < wrong).astype(np.int64)
    difference = compare(labels, first, second, speakers.tolist(), 2).differences["accuracy"]
    assert difference.value == pytest.approx(0.1)
    assert difference.interval == pytest.approx((0.1, 0.1))
    assert difference.p < 0.001


def test_a_p_value_below_a_twentieth_is_rare_where_nothing_differs():
    rng, found = np.random.default_rng(5), 0
    speakers = np.repeat([f"s{number}" for number in range(20)], 10).tolist()
    for trial in range(100):
        labels = rng.integers(0, 2, 200)
        first, second = (np.where(rng.random(200) < 0.3, 1 - labels, labels) for _ in range(2))
        found += compare(labels, first, second, speakers, 2, 300, trial).differences["accuracy"].p < 0.05
    assert found <= 15
