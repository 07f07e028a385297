"""Vectors of many dimensions as points on a plane, near ones side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from parrot_dist.reporting.metrics import Floats
from parrot_dist.reporting.svg import COLOURS, STYLE, to_svg

MAX_POINTS = 1000  # more take longer than the rest of an evaluation, and nobody can tell them apart
FEWEST = 10  # fewer have no neighbourhoods worth a map
PERPLEXITY = 30.0  # van der Maaten & Hinton 2008 advise 5 to 50
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
"""Shapes of points, so that emotions differ by more than colour: matplotlib's name -> the same as a character."""


@dataclass(frozen=True)
class EmbeddingMap:
    """Utterances seen in several spaces.

    Attributes:
        places: name of the space -> (n, 2) float64 between 0 and 1.
        labels: (n,) class numbers.
        utterances: how many there are, of which n are drawn.
    """

    places: Mapping[str, Floats]
    labels: NDArray[np.int64]
    utterances: int


def map_embeddings(
    spaces: Mapping[str, NDArray[np.floating]], labels: NDArray[np.int64], seed: int
) -> EmbeddingMap | None:
    """The map of the vectors (N, d) in each of `spaces`, by their `labels` (N,); None of too few utterances.

    At most `MAX_POINTS` utterances, picked at random, are drawn. The same seed gives the same map.
    """
    if len(labels) < FEWEST:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:MAX_POINTS])
    places = {name: _project(vectors[chosen], seed) for name, vectors in spaces.items()}
    return EmbeddingMap(places, labels[chosen], len(labels))


def map_svg(places: Floats, labels: NDArray[np.int64], name: str) -> str:
    """Points at `places` (n, 2), by their class in the look that `look` says."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for label in np.unique(labels):
            colour, marker = look(int(label))
            points = places[labels == label]
            axes.plot(*points.T, marker, color=colour, markersize=4, alpha=0.75, markeredgewidth=0, clip_on=False)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=[], yticks=[])
        return to_svg(figure, name)


def look(label: int) -> tuple[str, str]:
    """Colour and matplotlib marker of a class; no two of the first 64 have both in common."""
    shift = label // len(COLOURS)
    return COLOURS[label % len(COLOURS)], list(MARKERS)[(label + shift) % len(MARKERS)]


def legend(classes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, colour and shape, as a character, of each class."""
    looks = [look(number) for number in range(len(classes))]
    return [(name, colour, MARKERS[marker]) for name, (colour, marker) in zip(classes, looks, strict=True)]


def _project(vectors: NDArray[np.floating], seed: int) -> Floats:
    """(n, 2) places of `vectors` (n, d) by t-SNE; its axes have no meaning, so both are scaled to 0 to 1."""
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # From a random start, since that by principal components divides by a spread that may be 0.
    places = TSNE(2, perplexity=perplexity, init="random", random_state=seed).fit_transform(vectors)
    low, high = places.min(axis=0), places.max(axis=0)
    return np.asarray((places - low) / np.where(high > low, high - low, 1), np.float64)
