"""The report of a run: one HTML file with everything in it, to keep, to send and to open anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import SUMMARIES, Scores
from parrot_dist.reporting.plots import confusion_svg, curves_svg, pace_svg

SYNTHETIC = "spoken"
"""The name of the corpus that `make demo` speaks itself."""

BATCH, REFERENCE, PLAIN = "batch-coupled", "reference", "model"
MODES = {
    BATCH: "the transport plan spans the evaluated batch, as in the paper: a prediction depends on its neighbours",
    REFERENCE: "each utterance alone is transported to training rows kept in the checkpoint: no neighbours matter",
    PLAIN: "no transport: a prediction depends on its utterance alone",
}
"""How predictions were made, and what that means to a reader."""

SPEAKERS = {
    "test": "held-out speakers",
    "validation": "validation speakers, who had a say in which checkpoint is best",
    "train": "training speakers, whom the model knows",
}
"""Who speaks in a split, so that no report on known speakers passes for one on new ones."""


@dataclass(frozen=True)
class Result:
    """The scores of a split predicted one way, a key of `MODES`, with their 95 % intervals."""

    mode: str
    scores: Scores
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report tells.

    Attributes:
        name: the run.
        checkpoint: URL of the evaluated checkpoint.
        classes: (C,) emotions, in the order of the scores.
        results: one for each way of predicting; the first makes the headline.
        speakers: how many the split has.
        corpora: names of the evaluated corpora.
        history: of the training, oldest first; may be empty.
        configuration: the resolved one, YAML.
        versions: program or library -> version.
        commands: what it does -> shell command, in the order in which to run them again.
        prosody: scores of `prosody.prosody_baseline` on the same split.
        split: which part of the corpus was evaluated, a key of `SPEAKERS`.
    """

    name: str
    checkpoint: str
    classes: Sequence[str]
    results: Sequence[Result]
    speakers: int
    corpora: Sequence[str]
    history: Sequence[EpochRecord]
    configuration: str
    versions: Mapping[str, str]
    commands: Mapping[str, str]
    prosody: Scores | None = None
    split: str = "test"


def render_report(report: Report) -> str:
    """The HTML of `report`; the same report gives the same text.

    Raises:
        ValueError: there is no result, or one of a mode that is not in `MODES`.
    """
    unknown = [result.mode for result in report.results if result.mode not in MODES]
    if unknown or not report.results:
        raise ValueError(f"a report needs results made by one of {', '.join(MODES)}; got {unknown}")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"percent": percent, "interval": interval}
    head = report.results[0].scores
    chance = 1 / len(report.classes)
    template = page.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        head=report.results[0],
        chance=chance,
        summaries=SUMMARIES,
        modes=MODES,
        who=SPEAKERS[report.split],
        synthetic=SYNTHETIC in report.corpora,
        emotions=[_emotion(head, number, report.classes) for number in range(len(report.classes))],
        confusion=Markup(confusion_svg(head.confusion, report.classes)),
        curves=Markup(curves_svg(report.history, chance)) if report.history else None,
        pace=Markup(pace_svg(report.history)) if report.history else None,
    )


DASH, SPACE = "\N{EN DASH}", "\N{NO-BREAK SPACE}"


def percent(share: float) -> str:
    """A share between 0 and 1 in per cent, or a dash where it is not defined."""
    return DASH if math.isnan(share) else f"{100 * share:.1f}{SPACE}%"


def interval(bounds: tuple[float, float]) -> str:
    """An interval of shares in per cent, or that there is none."""
    low, high = bounds
    return "not defined" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}{SPACE}%"


def _emotion(scores: Scores, number: int, classes: Sequence[str]) -> dict[str, object]:
    """A row of the table of emotions: how many, how many found, and what it was most often mistaken for."""
    counts = scores.confusion[number]
    wrong = counts.copy()
    wrong[number] = 0
    mistaken = f"{classes[int(wrong.argmax())]} ({wrong.max()})" if wrong.any() else DASH
    return {
        "name": classes[number],
        "utterances": int(counts.sum()),
        "recall": float(scores.recall[number]),
        "mistaken": mistaken,
        "counts": counts.tolist(),
    }
