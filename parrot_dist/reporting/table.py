"""Scores and predictions for a terminal, and the same as plain values for `--json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parrot_dist.reporting.metrics import SUMMARIES, Scores

Intervals = Mapping[str, tuple[float, float]]


def print_scores(scores: Scores, intervals: Intervals, classes: Sequence[str], console: Console | None = None) -> None:
    """Print `scores` with their 95 % `intervals`, then recall and confusion of each of `classes` (C,)."""
    console = console or Console()
    summary = [
        [title, f"{getattr(scores, name):.3f}", interval_text(intervals[name])] for name, title in SUMMARIES.items()
    ]
    show_table(["", "score", "95 % interval"], summary, console)
    console.print()
    rows = [
        [name, *map(str, counts), share_text(recall)]
        for name, counts, recall in zip(classes, scores.confusion, scores.recall, strict=True)
    ]
    show_table(["said \\ heard as", *classes, "recall"], rows, console, emphasis=range(1, len(classes) + 1))


def print_predictions(
    files: Sequence[str], probabilities: NDArray[np.float32], classes: Sequence[str], console: Console | None = None
) -> None:
    """Print the emotion and all probabilities (N, C) of each of `files` (N,), one line a file."""
    console = console or Console()
    rows = [
        [file, classes[int(row.argmax())], *(f"{share:.3f}" for share in row)]
        for file, row in zip(files, probabilities, strict=True)
    ]
    show_table(["file", "emotion", *classes], rows, console, emphasis=probabilities.argmax(axis=1) + 2)


def scores_json(scores: Scores, intervals: Intervals, classes: Sequence[str]) -> dict[str, Any]:
    """`scores` as plain values; what is not defined (NaN) is None, which JSON can say."""
    summaries: dict[str, Any] = {name: getattr(scores, name) for name in SUMMARIES}
    return summaries | {
        "intervals": {name: [_defined(low), _defined(high)] for name, (low, high) in intervals.items()},
        "recall": {name: _defined(float(recall)) for name, recall in zip(classes, scores.recall, strict=True)},
        "classes": list(classes),
        "confusion": scores.confusion.tolist(),
        "utterances": int(scores.confusion.sum()),
    }


def predictions_json(
    files: Sequence[str], probabilities: NDArray[np.float32], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """One object a file: its `file`, `emotion` and `probabilities` by class, from (N, C)."""
    return [
        {
            "file": file,
            "emotion": classes[int(row.argmax())],
            "probabilities": {name: round(float(share), 6) for name, share in zip(classes, row, strict=True)},
        }
        for file, row in zip(files, probabilities, strict=True)
    ]


def share_text(share: float) -> str:
    """A share between 0 and 1 with three digits, or a dash where it is not defined."""
    return "-" if math.isnan(share) else f"{share:.3f}"


def interval_text(interval: tuple[float, float]) -> str:
    """An interval of shares, or a dash where it is not defined."""
    low, high = interval
    return "-" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def show_table(
    header: list[str], rows: list[list[str]], console: Console | None = None, emphasis: Sequence[int] = ()
) -> None:
    """Print a table, the cell `emphasis[row]` of each row in bold; in a pipe plain columns that are never cut."""
    console = console or Console()
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for cells in [header, *rows]:
            text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            console.print(text.rstrip(), markup=False, highlight=False, emoji=False, soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(header):
        table.add_column(Text(title), justify="right" if number else "left", overflow="fold")
    for cells, strong in zip_longest(rows, emphasis):
        table.add_row(*(Text(cell, style="bold" if number == strong else "") for number, cell in enumerate(cells)))
    console.print(table)
