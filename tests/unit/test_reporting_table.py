from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from parrot_dist.reporting.metrics import bootstrap, score
from parrot_dist.reporting.table import predictions_json, print_predictions, print_scores, scores_json

CLASSES = ["anger", "neutral", "sadness"]
LABELS, PREDICTIONS = [0, 0, 1, 1], [0, 1, 1, 1]  # nobody is sad
SCORES = score(LABELS, PREDICTIONS, 3)
INTERVALS = bootstrap(LABELS, PREDICTIONS, list("abab"), 3)
FILES = ["[bold]one[/bold].wav", "a/rather/long/folder/for/a/narrow/terminal/" * 2 + "two.wav"]
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], np.float32)


def shown(show, terminal):
    stream = io.StringIO()
    console = Console(file=stream, width=60, force_terminal=terminal, _environ={"TERM": "xterm"})
    show(console)
    return stream.getvalue()


def test_a_pipe_gets_scores_in_plain_columns():
    text = shown(lambda console: print_scores(SCORES, INTERVALS, CLASSES, console), terminal=False)
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:2] == ["accuracy", "0.750"]
    assert ["anger", "1", "1", "0", "0.500"] in lines
    assert ["sadness", "0", "0", "0", "-"] in lines


def test_a_pipe_gets_one_uncut_line_a_file():
    text = shown(lambda console: print_predictions(FILES, PROBABILITIES, CLASSES, console), terminal=False)
    lines = [line.split() for line in text.splitlines()]
    assert lines == [
        ["file", "emotion", *CLASSES],
        [FILES[0], "anger", "0.700", "0.200", "0.100"],
        [FILES[1], "sadness", "0.100", "0.200", "0.700"],
    ]


@pytest.mark.parametrize(
    "show",
    [
        lambda console: print_scores(SCORES, INTERVALS, CLASSES, console),
        lambda console: print_predictions(FILES, PROBABILITIES, CLASSES, console),
    ],
)
def test_a_terminal_gets_a_table_that_fits(show):
    text = shown(show, terminal=True)
    assert "\x1b[1m" in text
    assert "anger" in text


def test_scores_as_json_say_null_where_nothing_is_defined():
    values = json.loads(json.dumps(scores_json(SCORES, INTERVALS, CLASSES), allow_nan=False))
    assert values["recall"] == {"anger": 0.5, "neutral": 1.0, "sadness": None}
    assert values["uar"] == 0.75
    assert values["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert values["utterances"] == 4
    alone = bootstrap(LABELS, PREDICTIONS, ["a"] * 4, 3)
    assert scores_json(SCORES, alone, CLASSES)["intervals"]["uar"] == [None, None]


def test_predictions_as_json():
    assert json.loads(json.dumps(predictions_json(FILES, PROBABILITIES, CLASSES)))[1] == {
        "file": FILES[1],
        "emotion": "sadness",
        "probabilities": {"anger": 0.1, "neutral": 0.2, "sadness": 0.7},
    }
