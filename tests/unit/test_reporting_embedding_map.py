from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from parrot_dist.reporting.embedding_map import FEWEST, MAX_POINTS, legend, look, map_embeddings, map_svg
from parrot_dist.reporting.svg import COLOURS

LABELS = np.arange(60) % 3
VECTORS = (np.eye(3)[LABELS] * 20 + np.random.default_rng(0).normal(size=(60, 3))).astype(np.float32)


def test_utterances_of_one_kind_lie_side_by_side_and_every_time_at_the_same_place():
    drawn = map_embeddings({"one": VECTORS}, LABELS, seed=0)
    places = drawn.places["one"]
    assert places.min() == 0
    assert places.max() == 1
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(60)
    assert (LABELS[distance.argmin(1)] == LABELS).mean() > 0.95
    np.testing.assert_array_equal(map_embeddings({"one": VECTORS}, LABELS, seed=0).places["one"], places)


def test_many_utterances_are_sampled_and_few_not_drawn(monkeypatch):
    monkeypatch.setattr("parrot_dist.reporting.embedding_map.MAX_POINTS", 20)
    drawn = map_embeddings({"one": VECTORS}, LABELS, seed=0)
    assert (drawn.places["one"].shape, len(drawn.labels), drawn.utterances) == ((20, 2), 20, 60)
    assert map_embeddings({"one": VECTORS[: FEWEST - 1]}, LABELS[: FEWEST - 1], seed=0) is None


def test_vectors_that_are_all_the_same_are_drawn_without_a_complaint(recwarn):
    places = map_embeddings({"one": np.ones((12, 4), np.float32)}, np.arange(12), seed=0).places["one"]
    assert np.isfinite(places).all()
    assert not recwarn.list


def test_every_utterance_is_a_point_and_a_map_of_the_most_of_them_is_small():
    svg = map_svg(np.random.default_rng(0).random((MAX_POINTS, 2)), np.arange(MAX_POINTS) % 6, "map")
    root = ElementTree.fromstring(svg)
    assert sum(element.tag.endswith("use") for element in root.iter()) == MAX_POINTS
    assert len(svg) < 250_000


def test_no_two_emotions_look_alike():
    assert len({look(label) for label in range(64)}) == 64
    assert legend(["anger", "joy"])[1] == ("joy", look(1)[0], "■")


@pytest.mark.parametrize("page", ["#ffffff", "#171b21"])
def test_colours_can_be_seen_on_light_and_on_dark_pages(page):
    for colour in COLOURS:
        light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def luminance(colour):
    """Relative luminance, WCAG 2."""
    shares = np.array([int(part, 16) / 255 for part in re.findall("..", colour[1:])])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
