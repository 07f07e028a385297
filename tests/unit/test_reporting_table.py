from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from parrot_dist.reporting.comparison import Against, compare
from parrot_dist.reporting.result import PLAIN, Utterances, judge
from parrot_dist.reporting.scores_json import scores_json
from parrot_dist.reporting.table import predictions_json, print_predictions, print_scores

CLASSES = ["anger", "neutral", "sadness"]
LABELS, PREDICTIONS = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])  # nobody is sad


def result(speakers="abab", languages="eeee"):
    return judge(PLAIN, Utterances(LABELS, list(speakers), list(languages), ["c"] * 4), np.eye(3)[PREDICTIONS], 0)


AGAINST = Against("s3://b/other", result(), compare(LABELS, PREDICTIONS, LABELS, list("abab"), 3, samples=100))
FILES = ["[bold]one[/bold].wav", "a/rather/long/folder/for/a/narrow/terminal/" * 2 + "two.wav"]
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], np.float32)


def shown(show, terminal):
    stream = io.StringIO()
    console = Console(file=stream, width=60, force_terminal=terminal, _environ={"TERM": "xterm"})
    show(console)
    return stream.getvalue()


def test_a_pipe_gets_scores_in_plain_columns():
    text = shown(lambda console: print_scores(result(), CLASSES, console=console), terminal=False)
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
        lambda console: print_scores(result(), CLASSES, console=console),
        lambda console: print_predictions(FILES, PROBABILITIES, CLASSES, console),
    ],
)
def test_a_terminal_gets_a_table_that_fits(show):
    text = shown(show, terminal=True)
    assert "\x1b[1m" in text
    assert "anger" in text


def test_languages_are_shown_where_there_are_several_and_another_checkpoint_if_there_is_one():
    short = shown(lambda console: print_scores(result(), CLASSES, console=console), terminal=False)
    assert "language" not in short
    assert "against" not in short
    text = shown(lambda console: print_scores(result(languages="deed"), CLASSES, AGAINST, console), terminal=False)
    lines = [line.split() for line in text.splitlines()]
    assert ["d", "2", "1.000", "1.000", "1.000", "1.000"] in lines
    assert "2 speakers: UAR from 0.500 (b) to 1.000 (a)" in text
    assert "against s3://b/other, model:" in text
    assert ["accuracy", "0.750", "-0.250", "-0.500", "to", "0.000"] in [line[:6] for line in lines]
    assert "right alone: 0 and 1 utterances; McNemar p = 1.000" in text


def test_scores_as_json_say_null_where_nothing_is_defined():
    values = json.loads(json.dumps(scores_json(result(), CLASSES), allow_nan=False))
    assert values["recall"] == {"anger": 0.5, "neutral": 1.0, "sadness": None}
    assert values["uar"] == 0.75
    assert values["weighted_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert values["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert values["utterances"] == 4
    assert values["calibration"]["ece"] == 0.25
    assert values["calibration"]["bins"][0] == {"utterances": 0, "confidence": None, "accuracy": None}
    assert values["calibration"]["bins"][-1] == {"utterances": 4, "confidence": 1.0, "accuracy": 0.75}
    assert values["speakers"]["b"]["uar"] == 0.5
    assert values["languages"]["e"]["utterances"] == 4
    assert "against" not in values
    assert scores_json(result(speakers="aaaa"), CLASSES)["intervals"]["uar"] == [None, None]


def test_a_comparison_as_json():
    values = json.loads(json.dumps(scores_json(result(), CLASSES, AGAINST), allow_nan=False))["against"]
    assert values["checkpoint"] == "s3://b/other"
    assert values["differences"]["accuracy"]["value"] == -0.25
    assert (values["only_first_right"], values["only_second_right"], values["mcnemar_p"]) == (0, 1, 1.0)
    alone = compare(LABELS, PREDICTIONS, LABELS, ["a"] * 4, 3)
    values = scores_json(result(), CLASSES, Against("", result(), alone))["against"]
    assert values["differences"]["uar"] | {"value": 0} == {"value": 0, "interval": [None, None], "p": None}


def test_predictions_as_json():
    assert json.loads(json.dumps(predictions_json(FILES, PROBABILITIES, CLASSES)))[1] == {
        "file": FILES[1],
        "emotion": "sadness",
        "probabilities": {"anger": 0.1, "neutral": 0.2, "sadness": 0.7},
    }
