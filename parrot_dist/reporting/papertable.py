"""A grid of results as the paper prints it: one row for each encoder or pair, one column for each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from parrot_dist.grid import Cell
from parrot_dist.reporting.table import show_table, spread_text

Results = Mapping[Cell, Mapping[str, Any]]
"""What became of each cell, with at least `accuracy` and `macro_f1`, shares between 0 and 1."""

SHOWN = ("accuracy", "macro_f1")

PUBLISHED: dict[tuple[str, str, frozenset[str]], tuple[float, float]] = {
    (corpus, head, frozenset(encoders.split())): scores
    for corpus, rows in {
        "CREMA-D": {
            ("A(B) H", "concat"): (70.63, 69.79),
            ("A(B) H", "parrot"): (73.68, 72.90),
            ("A(B) M", "concat"): (61.25, 60.97),
            ("A(B) M", "parrot"): (63.26, 63.24),
            ("W2 M", "concat"): (64.19, 63.61),
            ("W2 M", "parrot"): (65.21, 65.01),
            ("A(B)", "cnn"): (69.91, 69.90),
            ("H", "cnn"): (69.95, 68.23),
        },
        "Emo-DB": {
            ("A(B) H", "concat"): (89.92, 88.24),
            ("A(B) H", "parrot"): (92.24, 91.53),
            ("A(B) M", "concat"): (65.96, 64.05),
            ("A(B) M", "parrot"): (66.36, 57.29),
            ("W2 M", "concat"): (80.91, 79.31),
            ("W2 M", "parrot"): (81.52, 80.96),
            ("A(B)", "cnn"): (84.11, 82.90),
            ("H", "cnn"): (88.26, 87.11),
        },
        "MESD": {
            ("A(B) H", "concat"): (58.31, 56.08),
            ("A(B) H", "parrot"): (59.54, 58.94),
            ("A(B) M", "concat"): (66.37, 65.28),
            ("A(B) M", "parrot"): (69.05, 68.72),
            ("W2 M", "concat"): (72.14, 71.39),
            ("W2 M", "parrot"): (71.10, 70.96),
            ("A(B)", "cnn"): (78.03, 77.96),
            ("H", "cnn"): (62.43, 62.43),
        },
    }.items()
    for (encoders, head), scores in rows.items()
}
"""Accuracy and macro-F1, percent, of arXiv 2506.01138 (tables 1 and 2): those of them that this project knows."""


def tables(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(corpus, header, rows) of each table: those of single encoders, then those of pairs.

    A cell is the mean and standard deviation (of the sample, n - 1) of accuracy and macro-F1 over the folds, percent;
    the published figures stand beside it where the paper has any of the head.
    """
    for corpus, size in dict.fromkeys((cell.corpus, len(cell.encoders)) for cell in results):
        here = {cell: result for cell, result in results.items() if (cell.corpus, len(cell.encoders)) == (corpus, size)}
        columns = list(dict.fromkeys(cell.head for cell in here))
        folds = len({cell.fold for cell in here})
        known = {head for one, head, _ in PUBLISHED if one == corpus}
        header = [title for head in columns for title in [head, *(["published"] if head in known else [])]]
        rows = []
        for encoders in dict.fromkeys(cell.encoders for cell in here):
            row = [" + ".join(encoders)]
            for head in columns:
                row.append(_cell([_folds(here, corpus, encoders, head, name) for name in SHOWN], folds))
                row += [_published(corpus, encoders, head)] if head in known else []
            rows.append(row)
        yield corpus, ["", *header], rows


def gains(results: Results) -> list[str]:
    """How parrot compares with concat, pair by pair: the paper's claim, a line for each corpus that has both."""
    lines = []
    for corpus in dict.fromkeys(cell.corpus for cell in results):
        means = {
            head: {
                encoders: np.mean(_folds(results, corpus, encoders, head, "macro_f1"))
                for encoders in dict.fromkeys(
                    cell.encoders for cell in results if (cell.corpus, cell.head) == (corpus, head)
                )
            }
            for head in ("concat", "parrot")
        }
        gain = [means["parrot"][pair] - means["concat"][pair] for pair in means["parrot"] if pair in means["concat"]]
        if gain:
            lines.append(
                f"{corpus}: parrot above concat in {sum(value > 0 for value in gain)} of {len(gain)} pairs, "
                f"by {np.mean(gain):+.2f} points of macro-F1 on average"
            )
    return lines


def markdown(results: Results) -> str:
    """The tables as Markdown."""
    blocks = ["Accuracy / macro-F1, percent, mean ± standard deviation over folds."]
    for corpus, header, rows in tables(results):
        lines = [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]
        blocks += [f"## {corpus}", "\n".join(lines)]
    return "\n\n".join([*blocks, *gains(results)]) + "\n"


def show(results: Results) -> None:
    """Print the tables."""
    for corpus, header, rows in tables(results):
        print(f"\n{corpus}: accuracy / macro-F1, percent, mean ± standard deviation over folds")
        show_table(header, rows)
    print("\n" + "\n".join(gains(results)))


def to_json(results: Results) -> list[dict[str, Any]]:
    """Every cell with what became of it, as plain values."""
    return [
        {"corpus": cell.corpus, "encoders": list(cell.encoders), "head": cell.head, "fold": cell.fold, **result}
        for cell, result in results.items()
    ]


def _folds(results: Results, corpus: str, encoders: tuple[str, ...], head: str, name: str) -> list[float]:
    """A score of every fold, percent."""
    wanted = (corpus, encoders, head)
    return [100 * result[name] for cell, result in results.items() if (cell.corpus, cell.encoders, cell.head) == wanted]


def _cell(scores: list[list[float]], folds: int) -> str:
    done = len(scores[0])
    missing = f" ({done} of {folds} folds)" if 0 < done < folds else ""
    return " / ".join(spread_text(values, digits=2) for values in scores) + missing if done else "-"


def _published(corpus: str, encoders: tuple[str, ...], head: str) -> str:
    found = PUBLISHED.get((corpus, head, frozenset(encoders)))
    return f"{found[0]:.2f} / {found[1]:.2f}" if found else ""
