"""The model card of an export: what the model is, what it was trained on, how good it is, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from parrot_dist.reporting.metrics import SUMMARIES
from parrot_dist.reporting.table import interval_text, share_text

NAN = float("nan")


@dataclass(frozen=True)
class Spoken:
    """What trained a model; and how many speakers tested it, of whom it knows some."""

    utterances: int
    speakers: int
    tested: int
    known: int
    hours: float
    corpora: Sequence[str]
    languages: Sequence[str]


@dataclass(frozen=True)
class Part:
    """An encoder: where it was loaded from, the SHA-256 of those files and their commit on the Hub, if they are from
    there, its size, and what of it was trained.
    """

    branch: str
    source: str
    digest: str
    parameters: int
    unfreeze: str
    revision: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says.

    Attributes:
        checkpoint: its URL.
        spoken: None where the corpus is out of reach or has changed.
        settings: of head and training, as in the configuration.
        scores: way of predicting -> content of its part of scores.json; empty if there was no evaluation.
    """

    name: str
    checkpoint: str
    epoch: int
    step: int
    score: float | None
    classes: Sequence[str]
    max_seconds: float
    shards: str
    spoken: Spoken | None
    parts: Sequence[Part]
    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]


def render_card(card: Card) -> str:
    """The card in Markdown, with the front matter of the Hugging Face Hub."""
    environment = Environment(
        loader=PackageLoader("parrot_dist.reporting", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    tables = {mode: _score_rows(scores) for mode, scores in card.scores.items()}
    recalls = {mode: _recall_rows(scores) for mode, scores in card.scores.items()}
    page = environment.get_template("card.md.j2")
    return page.render(card=card, who=_who(card.spoken), tables=tables, recalls=recalls)


def _who(spoken: Spoken | None) -> str:
    """Whom the scores are of, so that none on known speakers pass for some on new ones."""
    if spoken is None:
        return "On the test part of its corpus"
    if spoken.known == 0:
        return "On speakers it was not trained on"
    return f"On recordings it was not trained on, of {spoken.tested} speakers, {spoken.known} of whom it was trained on"


def _score_rows(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, score, 95 % interval) of every score that has an interval."""
    bounds = {name: [NAN if bound is None else bound for bound in pair] for name, pair in scores["intervals"].items()}
    return [
        (SUMMARIES.get(name, name), share_text(scores[name]), interval_text((low, high)))
        for name, (low, high) in bounds.items()
    ]


def _recall_rows(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, share_text(NAN if share is None else share)) for name, share in scores["recall"].items()]
