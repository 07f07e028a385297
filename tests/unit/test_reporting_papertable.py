"""The table beside the published figures."""

from __future__ import annotations

import pytest

from parrot_dist.grid import Cell
from parrot_dist.reporting.papertable import gains, markdown, show, to_json

FOLDS = {"concat": [(0.5, 0.4), (0.7, 0.6)], "parrot": [(0.6, 0.55), (0.8, 0.65)]}
RESULTS = {
    Cell("CREMA-D", pair, head, fold): {"accuracy": accuracy + shift, "macro_f1": f1 + shift}
    for pair, shift in ((("A(B)", "H"), 0.0), (("H", "W"), 0.1))
    for head, scores in FOLDS.items()
    for fold, (accuracy, f1) in enumerate(scores)
}


def test_cells_are_means_over_folds_beside_what_the_paper_has() -> None:
    text = markdown(RESULTS)
    row = next(line for line in text.splitlines() if line.startswith("| A(B) + H"))
    assert row == (
        "| A(B) + H | 60.00 ± 14.14 / 50.00 ± 14.14 | 70.63 / 69.79 | 70.00 ± 14.14 / 60.00 ± 7.07 | 73.68 / 72.90 |"
    )
    other = next(line for line in text.splitlines() if line.startswith("| H + W"))
    assert other.count("|  |") == 2


def test_folds_that_could_not_be_trained_are_said() -> None:
    lost = Cell("CREMA-D", ("H", "W"), "parrot", 1)
    text = markdown({cell: result for cell, result in RESULTS.items() if cell != lost})
    assert "70.00 / 65.00 (1 of 2 folds)" in text


def test_a_corpus_that_the_paper_does_not_have_has_no_such_column() -> None:
    unknown = {Cell("mine", cell.encoders, cell.head, cell.fold): result for cell, result in RESULTS.items()}
    assert "published" not in markdown(unknown)


def test_the_papers_claim_is_counted() -> None:
    (line,) = gains(RESULTS)
    assert "2 of 2 pairs" in line
    assert "+10.00 points" in line
    assert gains({cell: result for cell, result in RESULTS.items() if cell.head == "concat"}) == []


def test_a_terminal_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    show(RESULTS)
    assert "60.00 ± 14.14 / 50.00 ± 14.14" in capsys.readouterr().out
    assert to_json(RESULTS)[0] == {
        "corpus": "CREMA-D",
        "encoders": ["A(B)", "H"],
        "head": "concat",
        "fold": 0,
        "accuracy": 0.5,
        "macro_f1": 0.4,
    }
