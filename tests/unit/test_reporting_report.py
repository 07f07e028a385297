from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from parrot_dist.reporting.calibration import calibrate
from parrot_dist.reporting.comparison import Against, compare
from parrot_dist.reporting.embedding_map import map_embeddings
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import score_groups
from parrot_dist.reporting.mistakes import Mistake
from parrot_dist.reporting.plots import confusion_svg, curves_svg, pace_svg, reliability_svg, speakers_svg
from parrot_dist.reporting.report import Report, render_report
from parrot_dist.reporting.result import BATCH, PLAIN, REFERENCE, Utterances, judge
from parrot_dist.reporting.transport import align, plan_svg

CLASSES = ["anger", "disgust & fear", "neutral"]
LABELS = np.arange(60) % 3
SPEAKERS = [f"crema-d/speaker{index // 10}" for index in range(60)]
VOID = {"meta", "br", "path", "use", "rect"}


def predictions(wrong):
    """Probabilities (60, 3), of which every `wrong`-th is wrong."""
    said = np.where(np.arange(60) % wrong == 0, (LABELS + 1) % 3, LABELS)
    return (np.eye(3, dtype=np.float32)[said] + 0.1) / 1.3


def result(mode, wrong, languages=("en",), corpora=("crema-d",), speakers=SPEAKERS):
    spoken = [languages[index % len(languages)] for index in range(60)]
    origins = [corpora[index % len(corpora)] for index in range(60)]
    return judge(mode, Utterances(LABELS, speakers, spoken, origins), predictions(wrong), seed=0)


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
    split="test",
    known_speakers=0,
    results=[result(BATCH, 4), result(REFERENCE, 5)],
    history=history(3),
    configuration="name: demo\nnote: '<script>alert(1)</script> & more'\n",
    versions={"torch": "2.13.0"},
    commands={"train": "python -m parrot_dist.train --config jobs/demo.yaml"},
    prosody=result(BATCH, 2).scores,
)
AGAINST = Against(
    "s3://bucket/runs/b/checkpoint",
    result(PLAIN, 3),
    compare(LABELS, predictions(4).argmax(1), predictions(3).argmax(1), SPEAKERS, 3, samples=200),
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
        if tag in ("th", "td", "p"):
            self.text.append(" ")

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
    assert [
        attrs
        for _, attrs in parser.seen
        if not attrs.get("xlink:href", "#").startswith(("#", "data:")) or "src" in attrs
    ] == []
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
    assert warning in render_report(replace(REPORT, results=[result(PLAIN, 4, corpora=["spoken"])]))


def test_known_speakers_do_not_pass_for_new_ones():
    assert "60 utterances of 6 held-out speakers" in PAGE
    known = render_report(replace(REPORT, known_speakers=6))
    assert "of 6 training speakers, whom the model knows" in known
    assert "of 6 speakers, of whom the model knows 2" in render_report(replace(REPORT, known_speakers=2))
    assert "validation speakers" in render_report(replace(REPORT, split="validation"))
    assert "held-out" not in known


def test_a_report_without_transport_baseline_and_history_is_whole():
    short = replace(REPORT, results=[result(PLAIN, 4)], history=[], prosody=None)
    _, text = read(render_report(short))
    for title in ("Side by side", "Training", "Against", "Inside the model", "surest mistakes", "None"):
        assert title not in text


def test_one_speaker_and_a_class_that_nobody_spoke_leave_dashes():
    shares = np.eye(3, dtype=np.float32)[[0, 1, 0]]
    alone = judge(PLAIN, Utterances(np.array([0, 1, 1]), ["c/a"] * 3, ["en"] * 3, ["c"] * 3), shares, seed=0)
    comparison = compare(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([0, 0, 0]), ["c/a"] * 3, 3)
    page = render_report(replace(REPORT, results=[alone], against=replace(AGAINST, comparison=comparison)))
    assert "nan" not in read(page)[1]
    assert "not defined" in page


def test_languages_and_corpora_are_told_apart_where_there_are_several():
    _, text = read(PAGE)
    assert "language utterances" not in text
    several = result(PLAIN, 4, languages=["de", "en"], corpora=["emo-db", "crema-d", "mesd"])
    _, text = read(render_report(replace(REPORT, results=[several])))
    assert "language utterances accuracy UAR macro-F1 de 30 50.0 % 50.0 %" in text
    assert "corpus utterances accuracy UAR macro-F1 crema-d 20" in text


def test_a_speaker_is_named_with_its_corpus_where_that_is_not_clear():
    _, text = read(PAGE)
    assert "crema-d/speaker3" not in text
    assert "speaker3 10" in text
    both = result(PLAIN, 4, corpora=["crema-d", "mesd"])
    assert "crema-d/speaker3 10" in read(render_report(replace(REPORT, results=[both])))[1]


def test_another_checkpoint_is_set_beside_this_one():
    _, text = read(render_report(replace(REPORT, against=AGAINST)))
    assert "predicted by s3://bucket/runs/b/checkpoint (model)" in text
    assert "accuracy 75.0 % 66.7 % +8.3" in text
    assert "This checkpoint alone was right on 15 utterances, the other alone on 10" in text


def test_the_inside_of_the_model_is_shown():
    drawn = map_embeddings({"R_p": np.eye(3)[LABELS], "fused": np.eye(3)[LABELS]}, LABELS, seed=0)
    labels = np.array([2, 0, 1, 0])
    page = render_report(replace(REPORT, map=drawn, alignment=align(np.eye(4), labels)))
    parser, text = read(page)
    assert "Map of the utterances by their fused" in page
    assert "stays within one emotion 100.0 % 37.5 %" in text
    assert "neutral 100.0 % 25.0 % neutral" in text
    pictures = [attrs for tag, attrs in parser.seen if attrs.get("role") == "img"]
    assert all(attrs["aria-label"] for attrs in pictures)


def test_mistakes_can_be_listened_to():
    heard = Mistake("clip-1", "speaker1", "anger", "neutral", 0.987, "data:audio/flac;base64,AAAA")
    page = render_report(replace(REPORT, mistakes=[heard, replace(heard, key="clip-2", audio=None)]))
    parser, text = read(page)
    assert [attrs["src"] for tag, attrs in parser.seen if tag == "audio"] == [heard.audio]
    assert "anger taken for neutral 98.7 % sure · speaker speaker1 · clip-1" in text
    assert "too large" in text
    assert "mind its licence" in text


def test_what_the_run_was_started_with_is_set_beside_what_evaluated_it():
    now, before = {"torch": "2.13.0"}, {"torch": "2.12.0", "commit": "abc"}
    _, text = read(render_report(replace(REPORT, versions=now, starts=[before, now])))
    assert "training resumed evaluation torch 2.12.0 2.13.0 2.13.0 commit abc not known not known" in text
    _, text = read(render_report(replace(REPORT, versions=now, starts=[now])))
    assert "training and evaluation torch 2.13.0" in text


def test_the_same_report_gives_the_same_page():
    assert render_report(REPORT) == PAGE


def test_results_of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="batch-coupled"):
        render_report(replace(REPORT, results=[replace(REPORT.results[0], mode="magic")]))
    with pytest.raises(ValueError, match="batch-coupled"):
        render_report(replace(REPORT, results=[]))


@pytest.mark.parametrize(
    "svg",
    [
        confusion_svg(REPORT.results[0].scores.confusion, CLASSES),
        curves_svg(history(3), 0.3),
        pace_svg(history(1)),
        reliability_svg(calibrate(LABELS, predictions(4))),
        speakers_svg(REPORT.results[0].speakers, 0.3),
        speakers_svg(score_groups(LABELS, LABELS, [str(index) for index in range(60)], 3), 0.3),
        plan_svg(align(np.ones((4, 4)), np.array([0, 2, 2, 1])), CLASSES),
    ],
    ids=["confusion", "curves", "pace", "reliability", "speakers", "many speakers", "plan"],
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
