"""What people and programs see of a run."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from parrot_dist.reporting.view import JsonLines, Text

EPOCH = {
    "epoch": 2,
    "step": 12,
    "train_loss": 0.5,
    "val_loss": 0.75,
    "accuracy": 0.5,
    "uar": 0.25,
    "macro_f1": 0.125,
    "utterances_per_second": 64.0,
    "data_wait": 0.5,
    "seconds": 1.5,
    "marginal_error": 1e-7,
}
STEP = {"epoch": 1, "step": 5, "steps": 6, "loss": 0.5, "rate": 9.0, "data_wait": 0.5, "marginal_error": None}
RUN = [
    ("start", {"run": "s3://b/run", "workers": 2, "step": 6, "checkpoint": "s3://b/run/checkpoints/step-00000006"}),
    ("fill", {"branch": "mamba", "done": 5, "parts": 10}),
    ("step", STEP),
    ("epoch", EPOCH),
    ("checkpoint", {"step": 12, "url": "s3://b/run/checkpoints/step-00000012", "stall": 0.1}),
    ("message", {"text": "a message"}),
    ("warning", {"text": "a warning"}),
    ("end", {"how": "finished", "why": None, "newest": "NEWEST", "best": None}),
]


def shown(width: int | None = None, quiet: bool = False, events: list = RUN) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width or 40, force_terminal=width is not None, _environ={"TERM": "xterm"})
    view = Text(3, quiet, console)
    for kind, data in events:
        view.show(kind, **data)
    view.close()
    view.close()
    return stream.getvalue()


def test_a_log_has_a_line_for_each_event_that_needs_words() -> None:
    assert shown().splitlines() == [
        "going on from step 6 (s3://b/run/checkpoints/step-00000006) on 2 workers",
        "frozen part of mamba: 5/10 parts",
        "epoch 1/3  step 5/6  loss 0.5000      9.0 utt/s",
        "epoch 2/3  loss  0.500  val  0.750  accuracy 0.500  UAR 0.250  macro-F1 0.125     64.0 utt/s  data wait  50.0%"
        "     1.5 s  marginals 1e-07",
        "a message",
        "a warning",
        "newest checkpoint: NEWEST",
        "best checkpoint:   the beginning: nothing was saved yet",
    ]


@pytest.mark.parametrize("width", [30, 70, 80, 200])
def test_an_epoch_takes_one_line_of_a_terminal(width: int) -> None:
    text = shown(width, events=[("epoch", EPOCH)])
    assert len(text.splitlines()) == 1
    assert len(text.rstrip("\n")) <= width
    assert ("marginals" in text, "UAR" in text) == (width == 200, width >= 70)


def test_quiet_leaves_warnings_and_the_places() -> None:
    lines = shown(quiet=True).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a warning", "newest checkpoint", "best checkpoint"]
    assert "\x1b" not in shown(80, quiet=True)


@pytest.mark.parametrize(
    ("how", "why", "words"),
    [
        ("stopped", None, "stopped; the same command goes on from NEWEST\n"),
        ("lost", "no node", "the run was lost: no node\nthe same command goes on from NEWEST\n"),
        ("failed", "told on stderr", ""),
    ],
)
def test_how_it_may_end(how: str, why: str | None, words: str) -> None:
    event = {"how": how, "why": why, "newest": "NEWEST", "best": "BEST"}
    assert shown(events=[("end", event)]) == words


def test_programs_get_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = JsonLines()
    for kind, data in RUN:
        view.show(kind, **data)
    view.close()
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects == [{"event": kind, **data} for kind, data in RUN if kind not in ("step", "fill")]
