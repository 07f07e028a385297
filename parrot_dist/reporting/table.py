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

from parrot_dist.reporting.comparison import Against
from parrot_dist.reporting.console import plain
from parrot_dist.reporting.metrics import SUMMARIES, Scores, spread
from parrot_dist.reporting.result import Result


def print_scores(
    result: Result, classes: Sequence[str], against: Against | None = None, console: Console | None = None
) -> None:
    """Print the scores with their 95 % intervals, those of languages and corpora where there are several, the recall
    and confusion of each of `classes` (C,), and how `against` differs.
    """
    console = console or Console()
    summary = [
        [title, share_text(getattr(result.scores, name)), interval_text(result.intervals[name])]
        for name, title in SUMMARIES.items()
    ]
    show_table(["", "score", "95 % interval"], [*summary, ["ECE", share_text(result.calibration.ece), "-"]], console)
    for title, groups in (("language", result.languages), ("corpus", result.corpora)):
        if len(groups) > 1:
            console.print()
            show_table([title, "utterances", *SUMMARIES.values()], _group_rows(groups), console)
    console.print()
    rows = [
        [name, *map(str, counts), share_text(recall)]
        for name, counts, recall in zip(classes, result.scores.confusion, result.scores.recall, strict=True)
    ]
    show_table(["said \\ heard as", *classes, "recall"], rows, console, emphasis=range(1, len(classes) + 1))
    console.print()
    _print_speakers(result.speakers, console)
    if against is not None:
        console.print()
        print_against(against, console)


def print_against(against: Against, console: Console) -> None:
    """Print the scores of another checkpoint, and by how much the evaluated one is better."""
    comparison = against.comparison
    plain(console, f"against {against.checkpoint}, {against.result.mode}:")
    rows = [
        [
            title,
            share_text(getattr(against.result.scores, name)),
            f"{comparison.differences[name].value:+.3f}",
            interval_text(comparison.differences[name].interval),
            p_text(comparison.differences[name].p),
        ]
        for name, title in SUMMARIES.items()
    ]
    show_table(["", "its score", "difference", "95 % interval", "p"], rows, console)
    plain(
        console,
        f"right alone: {comparison.only_first} and {comparison.only_second} utterances; "
        f"McNemar p = {p_text(comparison.mcnemar)}",
    )


def _group_rows(groups: Mapping[str, Scores]) -> list[list[str]]:
    return [
        [name, str(scores.utterances), *map(share_text, scores.summaries.values())] for name, scores in groups.items()
    ]


def _print_speakers(speakers: Mapping[str, Scores], console: Console) -> None:
    ranked = sorted(speakers, key=lambda name: speakers[name].uar)
    worst, best = ranked[0], ranked[-1]
    plain(
        console,
        f"{len(ranked)} speakers: UAR from {share_text(speakers[worst].uar)} ({worst}) "
        f"to {share_text(speakers[best].uar)} ({best})",
    )


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


def spread_text(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of a score over folds; the mean of a single one."""
    mean, std = spread(values)
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def p_text(p: float) -> str:
    """A p-value, or a dash where it is not defined."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def show_table(
    header: list[str], rows: list[list[str]], console: Console | None = None, emphasis: Sequence[int] = ()
) -> None:
    """Print a table, the cell `emphasis[row]` of each row in bold; in a pipe plain columns that are never cut."""
    console = console or Console()
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for cells in [header, *rows]:
            text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            plain(console, text.rstrip())
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(header):
        table.add_column(Text(title), justify="right" if number else "left", overflow="fold")
    for cells, strong in zip_longest(rows, emphasis):
        table.add_row(*(Text(cell, style="bold" if number == strong else "") for number, cell in enumerate(cells)))
    console.print(table)
