"""What a transport plan brings together: does mass move between utterances of one emotion?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from parrot_dist.reporting.metrics import Floats
from parrot_dist.reporting.svg import BLUE, INK, STYLE, to_svg

PIXELS = 480  # of the picture's side at least, so that cells have sharp edges


@dataclass(frozen=True)
class Alignment:
    """The plan between the Mamba rows and the attention rows of one batch, sorted by emotion.

    Attributes:
        plan: (b, b) float64, row = Mamba, column = attention, sums to 1.
        labels: (b,) class numbers, ascending, of rows and columns alike.
        within: share of the mass that stays within an emotion.
        within_chance: that share if every row sent its mass evenly to all columns.
        itself: share of the mass that goes from an utterance to itself; by chance it is 1 / b.
    """

    plan: Floats
    labels: NDArray[np.int64]
    within: float
    within_chance: float
    itself: float


def align(plan: NDArray[np.floating], labels: NDArray[np.int64]) -> Alignment:
    """What `plan` (b, b) does with utterances of the classes `labels` (b,), in any order."""
    order = np.argsort(labels, kind="stable")
    mass, sorted_labels = plan[np.ix_(order, order)].astype(np.float64), labels[order]
    mass /= mass.sum()
    same = sorted_labels[:, None] == sorted_labels
    return Alignment(mass, sorted_labels, float(mass[same].sum()), float(same.mean()), float(np.trace(mass)))


def flows(alignment: Alignment, classes: Sequence[str]) -> list[tuple[str, float, float, str]]:
    """Where the mass of the Mamba rows of each emotion in the batch goes.

    Returns:
        For each emotion its name, the share that goes to attention rows of the same one, what that would be in an even
        spread, and the emotion that gets most in relation to an even spread.
    """
    present, counts = np.unique(alignment.labels, return_counts=True)
    even = counts / counts.sum()
    member = (alignment.labels == present[:, None]).astype(np.float64)
    mass = member @ alignment.plan @ member.T
    shares = mass / mass.sum(axis=1, keepdims=True)
    return [
        (classes[label], float(row[place]), float(even[place]), classes[present[(row / even).argmax()]])
        for place, (label, row) in enumerate(zip(present, shares, strict=True))
    ]


def plan_svg(alignment: Alignment, classes: Sequence[str]) -> str:
    """The plan as a heat map: the deeper the colour, the more mass; lines part the emotions."""
    plan, size = alignment.plan, len(alignment.plan)
    cell = -(-PIXELS // size)
    picture = np.empty((size * cell, size * cell, 4))
    picture[..., :3] = to_rgb(BLUE)
    picture[..., 3] = np.kron(plan / plan.max(), np.ones((cell, cell)))
    present, starts = np.unique(alignment.labels, return_index=True)
    bounds = np.append(starts, size)
    names = [classes[label] for label in present]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(4.6, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.imshow(picture, extent=(0, size, size, 0), interpolation="none")
        for bound in bounds:
            axes.plot([bound, bound], [0, size], color=INK, alpha=0.35, linewidth=0.6, clip_on=False)
            axes.plot([0, size], [bound, bound], color=INK, alpha=0.35, linewidth=0.6, clip_on=False)
        middles = (bounds[:-1] + bounds[1:]) / 2
        axes.set_xticks(middles, names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, names)
        axes.set(xlabel="attention rows, R_q", ylabel="Mamba rows, R_p")
        return to_svg(figure, "plan")
