"""Figures of the report as SVG: no background, and writing in the colour of the page, so they suit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import Counts

INK = "#010203"  # stands for the page's text colour until the SVG is written
BLUE, ORANGE, GREEN = (
    "#3d85d1",
    "#d9721f",
    "#2a9d76",
)  # at least 3:1 on white and on near-black, told apart by the colour-blind
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}
# As a picture of its own the SVG has no page to take its colour from.
ALONE = "<style>svg:root{color:#1f2328}@media(prefers-color-scheme:dark){svg:root{color:#e6e9ee}}</style>"
FONTS = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


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
        return _svg(figure, "confusion")


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
        return _svg(figure, "curves")


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
        return _svg(figure, "pace")


def _lines(axes: Axes, history: Sequence[EpochRecord], fields: Mapping[str, tuple[str, str]], title: str) -> None:
    """One line for each of `fields` (field of a record -> label, colour), the legend between title and lines."""
    epochs = [record.epoch for record in history]
    for field, (label, colour) in fields.items():
        axes.plot(epochs, [getattr(record, field) for record in history], marker="o", color=colour, label=label)
    axes.legend(
        ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 0.98), borderpad=0, handlelength=1.4, columnspacing=1.4
    )
    axes.set_title(title, pad=20)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _svg(figure: Figure, name: str) -> str:
    """One `<svg>` element, the same bytes for the same figure, fit for a page of its own or for the inside of one."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue().replace(INK, "currentColor")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # nothing refers to them, and two figures of one page would share them
    return re.sub(r"^.*?(<svg [^>]*>)", rf"\1{ALONE}", svg, count=1, flags=re.DOTALL)
