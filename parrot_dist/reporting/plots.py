"""Figures of scores and of the course of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from parrot_dist.reporting.calibration import EDGES, Calibration
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import Counts, Scores
from parrot_dist.reporting.svg import BLUE, GREEN, INK, ORANGE, STYLE, to_svg

NAMED_SPEAKERS = 40


def confusion_svg(confusion: Counts, classes: Sequence[str]) -> str:
    """Confusion matrix (C, C), row = label: counts in the cells, colour and per cent by row."""
    count = len(classes)
    support = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support > 0)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.3 + 0.6 * count, 1.1 + 0.6 * count), layout="constrained")
        axes = figure.subplots()
        for row, column in np.ndindex(count, count):
            colour = BLUE if row == column else ORANGE
            # At most 0.7 of the colour, so that the page's text colour can be read on every cell.
            axes.add_patch(
                Rectangle(
                    (column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=0.03 + 0.67 * share[row, column], lw=0
                )
            )
            axes.text(column, row - 0.08, str(confusion[row, column]), ha="center", va="center", size=10)
            axes.text(column, row + 0.26, f"{share[row, column]:.0%}", ha="center", va="center", size=6.5, alpha=0.75)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", xlabel="predicted", ylabel="true")
        axes.set_xticks(range(count), classes, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), classes)
        return to_svg(figure, "confusion")


def curves_svg(history: Sequence[EpochRecord], chance: float) -> str:
    """Loss of both splits, and the validation scores above the level of `chance` (0 to 1), by epoch."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 5.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        loss = {"train_loss": ("training", BLUE), "val_loss": ("validation", ORANGE)}
        _lines(above, history, loss, "cross-entropy in nats")
        below.axhline(chance, color=INK, alpha=0.6, linestyle=":", linewidth=1.2, label="chance")
        scores = {"accuracy": ("accuracy", BLUE), "uar": ("UAR", ORANGE), "macro_f1": ("macro-F1", GREEN)}
        _lines(below, history, scores, "scores on the validation speakers")
        below.set(ylim=(0, 1.02), xlabel="epoch")
        below.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        return to_svg(figure, "curves")


def pace_svg(history: Sequence[EpochRecord]) -> str:
    """Training utterances a second, and the share of time spent waiting for data, by epoch."""
    epochs = [record.epoch for record in history]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 5.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        above.bar(epochs, [record.utterances_per_second for record in history], width=0.7, color=BLUE)
        above.set_title("utterances per second")
        below.bar(epochs, [record.data_wait for record in history], width=0.7, color=ORANGE)
        below.set_title("time spent waiting for data")
        below.set(ylim=(0, max(0.1, 1.05 * max(record.data_wait for record in history))), xlabel="epoch")
        below.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, "pace")


def reliability_svg(calibration: Calibration) -> str:
    """How often predictions were right by how sure they were, and how many were how sure."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 5.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        there = calibration.count > 0
        confidence, accuracy = calibration.confidence[there], calibration.accuracy[there]
        above.plot([0, 1], [0, 1], color=INK, alpha=0.6, linestyle=":", linewidth=1.2, label="as sure as right")
        above.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=2, alpha=0.7, label="gap")
        area = 8 + 110 * calibration.count[there] / calibration.count.max()
        above.scatter(confidence, accuracy, s=area, color=BLUE, label="share right", zorder=3)
        above.set(ylim=(-0.02, 1.04), xlim=(0, 1.02))
        above.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        _legend(above, "share predicted right")
        below.bar(
            EDGES[:-1], calibration.count, width=np.diff(EDGES), align="edge", color=BLUE, edgecolor=BLUE, alpha=0.7
        )
        below.set_title("utterances")
        below.set_xlabel("confidence: probability of the predicted emotion")
        below.xaxis.set_major_formatter(PercentFormatter(xmax=1))
        below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        return to_svg(figure, "reliability")


def speakers_svg(speakers: Mapping[str, Scores], chance: float) -> str:
    """UAR of every speaker, the best understood first; as many are named as there is room for."""
    ranked = sorted(speakers, key=lambda name: (-speakers[name].uar, name))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        values = [speakers[name].uar for name in ranked]
        axes.bar(range(len(ranked)), values, width=0.7, color=BLUE)
        axes.axhline(float(np.mean(values)), color=ORANGE, linewidth=1.4, label="mean")
        axes.axhline(chance, color=INK, alpha=0.6, linestyle=":", linewidth=1.2, label="chance")
        axes.set(ylim=(0, 1.02), xlim=(-0.6, len(ranked) - 0.4))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        names = ranked if len(ranked) <= NAMED_SPEAKERS else []
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 30, ha="right")
        _legend(axes, "UAR of each speaker")
        return to_svg(figure, "speakers")


def _lines(axes: Axes, history: Sequence[EpochRecord], fields: Mapping[str, tuple[str, str]], title: str) -> None:
    """One line for each of `fields` (field of a record -> label, colour), the legend between title and lines."""
    epochs = [record.epoch for record in history]
    for field, (label, colour) in fields.items():
        axes.plot(epochs, [getattr(record, field) for record in history], marker="o", color=colour, label=label)
    _legend(axes, title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Axes, title: str) -> None:
    """A title, and the legend in one line below it."""
    axes.legend(
        ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 0.98), borderpad=0, handlelength=1.4, columnspacing=1.4
    )
    axes.set_title(title, pad=20)
