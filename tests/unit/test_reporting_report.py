from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import bootstrap, score
from parrot_dist.reporting.plots import confusion_svg, curves_svg, pace_svg
from parrot_dist.reporting.report import BATCH, PLAIN, REFERENCE, Report, Result, render_report

CLASSES = ["anger", "disgust & fear", "neutral"]
LABELS = np.arange(60) % 3
SPEAKERS = (np.arange(60) // 10).astype(str)
VOID = {"meta", "br", "path", "use", "rect"}


def result(mode, wrong):
    predictions = np.where(np.arange(60) % wrong == 0, (LABELS + 1) % 3, LABELS)
    return Result(mode, score(LABELS, predictions, 3), bootstrap(LABELS, predictions, SPEAKERS, 3, samples=100))


def history(epochs):
    return [
        EpochRecord(
            epoch=epoch,
            step=10 * epoch,
            train_loss=1 / epoch,
            val_loss=1.2 / epoch,
            accuracy=0.5,
            uar=0.5,
            macro_f1=0.4,
            utterances_per_second=100.0,
            data_wait=0.0,
            seconds=1.0,
        )
        for epoch in range(1, epochs + 1)
    ]


REPORT = Report(
    name="a <b>run</b>",
    checkpoint="s3://bucket/runs/a/checkpoint",
    classes=CLASSES,
    results=[result(BATCH, 4), result(REFERENCE, 5)],
    speakers=6,
    corpora=["crema-d"],
    history=history(3),
    configuration="name: demo\nnote: '<script>alert(1)</script> & more'\n",
    versions={"torch": "2.13.0"},
    commands={"train": "python -m parrot_dist.train --config jobs/demo.yaml"},
    prosody=result(BATCH, 2).scores,
)
PAGE = render_report(REPORT)


class Nesting(HTMLParser):
    """Checks that every element is closed where it should be; collects the names and the words."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID or tag in ("path", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    return parser, re.sub(r"\s+", " ", "".join(parser.text))


def test_the_page_is_well_formed_and_needs_nothing_else():
    parser, _ = read(PAGE)
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "link", "img", "iframe"}
    assert [attrs for _, attrs in parser.seen if attrs.get("xlink:href", "#")[0] != "#" or "src" in attrs] == []
    assert "url(http" not in PAGE
    assert "@import" not in PAGE


def test_the_page_tells_what_was_reached_beside_chance_and_the_baseline():
    _, text = read(PAGE)
    assert "Guessing evenly among 3 emotions has a UAR of 33.3 %" in text
    assert "reaches 50.0 % on the same split; this model reaches 75.0 %" in text
    assert "batch-coupled" in text
    assert "reference" in text
    assert "80.0 %" in text
    assert "95 % interval" in text
    assert "2.13.0" in text
    assert "python -m parrot_dist.train --config jobs/demo.yaml" in text


def test_the_users_text_is_shown_and_not_obeyed():
    parser, text = read(PAGE)
    assert "note: '<script>alert(1)</script> & more'" in text
    assert "a <b>run</b>" in text
    assert "b" not in {tag for tag, _ in parser.seen}


def test_only_the_spoken_corpus_is_called_synthetic():
    warning = "no evidence about emotion recognition in people"
    assert warning not in PAGE
    assert warning in render_report(replace(REPORT, corpora=["spoken"]))


def test_known_speakers_do_not_pass_for_new_ones():
    assert "60 utterances of 6 held-out speakers" in PAGE
    assert "held-out" not in render_report(replace(REPORT, split="train"))


def test_a_report_without_transport_baseline_and_history_is_whole():
    short = replace(REPORT, results=[result(PLAIN, 4)], history=[], prosody=None)
    _, text = read(render_report(short))
    assert "Side by side" not in text
    assert "Training" not in text
    assert "None" not in text


def test_one_speaker_and_a_class_that_nobody_spoke_leave_dashes():
    scores = score([0, 1, 1], [0, 1, 0], 3)
    alone = Result(PLAIN, scores, bootstrap([0, 1, 1], [0, 1, 0], ["a"] * 3, 3))
    page = render_report(replace(REPORT, results=[alone], speakers=1))
    assert "nan" not in read(page)[1]
    assert "not defined" in page


def test_the_same_report_gives_the_same_page():
    assert render_report(REPORT) == PAGE


def test_results_of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="batch-coupled"):
        render_report(replace(REPORT, results=[replace(REPORT.results[0], mode="magic")]))
    with pytest.raises(ValueError, match="batch-coupled"):
        render_report(replace(REPORT, results=[]))


@pytest.mark.parametrize(
    "svg",
    [confusion_svg(REPORT.results[0].scores.confusion, CLASSES), curves_svg(history(3), 0.3), pace_svg(history(1))],
    ids=["confusion", "curves", "pace"],
)
def test_a_figure_stands_alone_and_takes_the_colour_of_its_page(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#000000" not in svg
    assert "prefers-color-scheme: dark" in svg.replace("scheme:dark", "scheme: dark")
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))


def test_the_confusion_figure_has_every_count():
    confusion = np.array([[101, 2, 3], [4, 105, 6], [0, 0, 0]])
    written = set(ElementTree.fromstring(confusion_svg(confusion, CLASSES)).itertext())
    assert {"101", "2", "3", "4", "105", "6", *CLASSES} <= written
