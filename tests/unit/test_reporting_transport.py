from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.reporting.transport import align, flows, plan_svg

CLASSES = ["anger", "joy", "calm", "fear"]


@st.composite
def plans(draw):
    """A plan (b, b) with even rows, and the labels of the batch."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 20))
    plan = rng.random((size, size))
    return plan / plan.sum(1, keepdims=True) / size, rng.integers(0, 4, size)


@given(plans(), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_leaves_no_trace_in_the_shares(case, random):
    plan, labels = case
    order = list(range(len(labels)))
    random.shuffle(order)
    before, after = align(plan, labels), align(plan[np.ix_(order, order)], labels[order])
    assert before.labels.tolist() == after.labels.tolist() == sorted(labels)
    for name in ("within", "within_chance", "itself"):
        assert getattr(before, name) == pytest.approx(getattr(after, name))
    assert before.within >= before.itself - 1e-12


@given(plans())
def test_the_flows_of_all_emotions_add_up_to_the_mass_within(case):
    alignment = align(*case)
    there = flows(alignment, CLASSES)
    assert [name for name, *_ in there] == [CLASSES[label] for label in np.unique(case[1])]
    shares = np.bincount(case[1])[np.unique(case[1])] / len(case[1])  # rows of the plan have equal mass
    assert sum(share * same for share, (_, same, _, _) in zip(shares, there, strict=True)) == pytest.approx(
        alignment.within
    )
    np.testing.assert_allclose([even for _, _, even, _ in there], shares)


def test_an_even_plan_is_chance_and_a_diagonal_one_is_perfect():
    labels = np.array([1, 0, 1, 0])
    even = align(np.full((4, 4), 1 / 16), labels)
    assert (even.within, even.within_chance, even.itself) == (0.5, 0.5, 0.25)
    diagonal = align(np.eye(4) / 4, labels)
    assert (diagonal.within, diagonal.itself) == (1, 1)
    assert flows(diagonal, CLASSES) == [("anger", 1.0, 0.5, "anger"), ("joy", 1.0, 0.5, "joy")]


def test_the_picture_names_the_emotions_that_are_there_and_stays_small_for_a_large_batch():
    labels = np.arange(256) % 3
    svg = plan_svg(align(np.full((256, 256), 1.0), labels), CLASSES)
    words = set(ElementTree.fromstring(svg).itertext())
    assert words >= {"anger", "joy", "calm"}
    assert "fear" not in words
    assert len(svg) < 300_000
