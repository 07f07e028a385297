"""The report of a run: one HTML file with everything in it, to keep, to send and to open anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from parrot_dist.reporting.comparison import Against
from parrot_dist.reporting.embedding_map import EmbeddingMap, legend, map_svg
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import SUMMARIES, Scores
from parrot_dist.reporting.mistakes import Mistake
from parrot_dist.reporting.plots import confusion_svg, curves_svg, pace_svg, reliability_svg, speakers_svg
from parrot_dist.reporting.result import MODES, Result
from parrot_dist.reporting.table import p_text
from parrot_dist.reporting.transport import Alignment, flows, plan_svg

SYNTHETIC = "spoken"
"""The name of the corpus that `make demo` speaks itself."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report tells.

    Attributes:
        name: the run.
        checkpoint: URL of the evaluated checkpoint.
        classes: (C,) emotions, in the order of the scores.
        split: which part of the corpus was evaluated: train, validation or test.
        known_speakers: how many of its speakers the model was trained on.
        results: one for each way of predicting; the first makes the headline, and all that is shown but once.
        configuration: the resolved one, YAML.
        versions: of this evaluation, see `provenance.provenance`.
        commands: what it does -> shell command, in the order in which to run them again.
        starts: of the run, likewise, oldest first; nothing where they are not known.
        history: of the training, oldest first; may be empty.
        against: another checkpoint on the same utterances.
        prosody: scores of `prosody.prosody_baseline` on the same split.
        map: of what the head decides by.
        alignment: what one transport plan does.
        mistakes: the surest ones, surest first.
    """

    name: str
    checkpoint: str
    classes: Sequence[str]
    split: str
    known_speakers: int
    results: Sequence[Result]
    configuration: str
    versions: Mapping[str, str]
    commands: Mapping[str, str]
    starts: Sequence[Mapping[str, str]] = ()
    history: Sequence[EpochRecord] = ()
    against: Against | None = None
    prosody: Scores | None = None
    map: EmbeddingMap | None = None
    alignment: Alignment | None = None
    mistakes: Sequence[Mistake] = ()


def render_report(report: Report) -> str:
    """The HTML of `report`; the same report gives the same text.

    Raises:
        ValueError: there is no result, or one of a mode that is not in `MODES`.
    """
    unknown = [result.mode for result in report.results if result.mode not in MODES]
    if unknown or not report.results:
        raise ValueError(f"a report needs results made by one of {', '.join(MODES)}; got {unknown}")
    page = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"percent": percent, "points": points, "interval": interval, "gap": gap, "p": p_text}
    head = report.results[0].scores
    return page.get_template("report.html.j2").render(
        report=report,
        head=report.results[0],
        chance=1 / len(report.classes),
        summaries=SUMMARIES,
        modes=MODES,
        who=_who(report),
        synthetic=SYNTHETIC in report.results[0].corpora,
        speakers=short_names(report.results[0].speakers, report.results[0].corpora),
        ran=(ran := _ran(report)),
        programs=list(dict.fromkeys(program for _, versions in ran for program in versions)),
        emotions=[_emotion(head, number, report.classes) for number in range(len(report.classes))],
        legend=legend(report.classes),
        figures={name: Markup(svg) for name, svg in _figures(report).items()},
        flows=flows(report.alignment, report.classes) if report.alignment else [],
        maps={name: Markup(svg) for name, svg in _maps(report.map).items()},
    )


def _who(report: Report) -> str:
    """Who speaks, so that no report on known speakers passes for one on new ones."""
    total = len(report.results[0].speakers)
    if report.known_speakers == total:
        return "training speakers, whom the model knows"
    if report.known_speakers:
        return f"speakers, of whom the model knows {report.known_speakers}"
    if report.split == "validation":
        return "validation speakers, who had a say in which checkpoint is best"
    return "held-out speakers"


def _figures(report: Report) -> dict[str, str]:
    """The figures that there is something to draw for."""
    head, chance = report.results[0], 1 / len(report.classes)
    figures = {
        "confusion": confusion_svg(head.scores.confusion, report.classes),
        "reliability": reliability_svg(head.calibration),
        "speakers": speakers_svg(short_names(head.speakers, head.corpora), chance),
    }
    if report.history:
        figures |= {"curves": curves_svg(report.history, chance), "pace": pace_svg(report.history)}
    if report.alignment:
        figures["plan"] = plan_svg(report.alignment, report.classes)
    return figures


def _ran(report: Report) -> list[tuple[str, Mapping[str, str]]]:
    """What the run, its continuations and this evaluation ran on, each under its name; once if nothing ever changed."""
    starts = [("training" if number == 0 else "resumed", start) for number, start in enumerate(report.starts)]
    if [start for _, start in starts] == [report.versions]:
        return [("training and evaluation", report.versions)]
    return [*starts, ("evaluation", report.versions)]


def _maps(drawn: EmbeddingMap | None) -> dict[str, str]:
    """One map for each space."""
    if drawn is None:
        return {}
    return {
        name: map_svg(places, drawn.labels, f"map{number}")
        for number, (name, places) in enumerate(drawn.places.items())
    }


def short_names(speakers: Mapping[str, Scores], corpora: Mapping[str, Scores]) -> dict[str, Scores]:
    """`speakers` without the corpus before their names where there is only one."""
    if len(corpora) > 1:
        return dict(speakers)
    return {name.partition("/")[2]: scores for name, scores in speakers.items()}


DASH, SPACE = "\N{EN DASH}", "\N{NO-BREAK SPACE}"


def percent(share: float) -> str:
    """A share between 0 and 1 in per cent, or a dash where it is not defined."""
    return DASH if math.isnan(share) else f"{100 * share:.1f}{SPACE}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def gap(bounds: tuple[float, float]) -> str:
    """An interval of differences in percentage points, or that there is none."""
    low, high = bounds
    return "not defined" if math.isnan(low) else f"{points(low)} to {points(high)}"


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
