"""The evaluation of a checkpoint as files: scores, predictions, confusion matrix and the report of its run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parrot_dist import configuration, storage
from parrot_dist.data.index import audio_member, parse_members
from parrot_dist.data.plan import Rows
from parrot_dist.reporting.comparison import Against, compare
from parrot_dist.reporting.embedding_map import map_embeddings
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.mistakes import Mistake, surest_mistakes, to_urls
from parrot_dist.reporting.plots import confusion_svg
from parrot_dist.reporting.provenance import provenance, read_starts
from parrot_dist.reporting.report import Report, render_report
from parrot_dist.reporting.result import Result
from parrot_dist.reporting.scores_json import scores_json
from parrot_dist.training import checkpoint
from parrot_dist.training.evaluation import (
    EmbeddedRows,
    Evaluation,
    dump_predictions,
    embed,
    evaluate,
    predict,
    score_prosody,
)
from parrot_dist.training.inference import Place
from parrot_dist.training.inside import first_plan, vector_spaces
from parrot_dist.training.model import CONFIG_PART
from parrot_dist.training.snapshot import read_history
from parrot_dist.training.subject import Subject, open_rival, open_subject
from parrot_dist.training.task import Task


@dataclass(frozen=True)
class Published:
    """The headline of an evaluation, and where all of it went."""

    checkpoint: str
    classes: list[str]
    result: Result
    against: Against | None
    places: list[str]


def evaluate_checkpoint(
    url: str, split: str, transport: str | None = None, against: str | None = None, out: Path | None = None
) -> Published:
    """Evaluate the checkpoint at `url` on a split, also `against` another, and write everything about it.

    Raises:
        UserError: no checkpoint there, its corpus or encoders are gone or changed, it has no reference rows, or it
            cannot be compared with the other.
    """
    place = Place.alone()
    subject = open_subject(url, transport)
    rows = getattr(subject.task.parts, split)
    rival = open_rival(subject, split, against, transport) if against else None
    embedded = embed(subject.task, subject.model.to(place.device), rows, place, prosody=split != "train")
    for one in embedded.skipped:
        print(f"skipped {one.key}: {one.reason}", file=sys.stderr)
    evaluation = predict(subject.task, subject.model.head, subject.reference, embedded)
    comparison = _compare(subject, evaluation, rival, place) if rival else None
    report = _report(subject, split, embedded, evaluation, comparison, place)
    remote = subject.found.evaluation_url(split)
    local = out or Path("runs") / subject.task.config.name
    for name, data in _files(report, subject, evaluation).items():
        storage.write_bytes(storage.join(remote, name), data)
        storage.write_bytes(str(local / name), data)
    places = [storage.join(remote, "report.html"), str(local / "report.html")]
    return Published(subject.found.url, list(report.classes), report.results[0], comparison, places)


def _compare(subject: Subject, evaluation: Evaluation, rival: Subject, place: Place) -> Against:
    """The headline's predictions beside those that `rival` makes, in the way asked for, of the same utterances."""
    task, rows = subject.task, evaluation.rows
    other = evaluate(rival.task, rival.model.to(place.device), rival.reference, rows, place)
    comparison = compare(
        task.labels[rows],
        evaluation.logits[subject.mode].argmax(1),
        other.logits[rival.mode].argmax(1),
        task.speakers(rows),
        len(task.config.data.classes),
        seed=task.config.seed,
    )
    return Against(rival.found.url, other.result(rival.task, rival.mode), comparison)


def _report(
    subject: Subject, split: str, embedded: EmbeddedRows, evaluation: Evaluation, against: Against | None, place: Place
) -> Report:
    task, head, run_url = subject.task, subject.model.head, subject.found.run_url
    modes = sorted(evaluation.logits, key=lambda mode: mode != subject.mode)
    labels = task.labels[embedded.rows]
    return Report(
        name=task.config.name,
        checkpoint=subject.found.url,
        classes=task.config.data.classes,
        split=split,
        known_speakers=task.known_speakers(embedded.rows),
        results=[evaluation.result(task, mode) for mode in modes],
        against=against,
        prosody=score_prosody(task, embedded, place) if embedded.prosody.size else None,
        map=map_embeddings(vector_spaces(task, head, embedded), labels, task.config.seed),
        alignment=first_plan(task, head, embedded),
        mistakes=_mistakes(task, evaluation.rows, evaluation.probabilities(subject.mode)),
        history=_history(subject.found),
        configuration=configuration.dumps(task.config),
        starts=read_starts(run_url),
        versions=provenance(),
        commands=_commands(subject, split),
    )


def _history(found: checkpoint.Found) -> list[EpochRecord]:
    """The epochs of the run of `found`, also those after it unless its newest checkpoint is damaged."""
    try:
        return read_history(checkpoint.newest(found.run_url) or found)
    except checkpoint.Damaged:
        return read_history(found)


def _mistakes(task: Task, rows: Rows, probabilities: np.ndarray) -> list[Mistake]:
    classes, index = task.config.data.classes, task.index
    which = surest_mistakes(task.labels[rows], probabilities)
    samples = task.corpus.read(rows[which])
    recordings = {row: audio_member(parse_members(samples[row], index.key[row]), index.key[row]) for row in rows[which]}
    urls = to_urls(recordings)
    return [
        Mistake(
            key=str(index.key[row]),
            speaker=str(index.speaker[row]),
            label=classes[task.labels[row]],
            prediction=classes[int(shares.argmax())],
            confidence=float(shares.max()),
            audio=urls.get(row),
        )
        for row, shares in zip(rows[which], probabilities[which], strict=True)
    ]


def _commands(subject: Subject, split: str) -> dict[str, str]:
    url, name = subject.found.url, subject.task.config.name
    settings = storage.join(subject.found.run_url, CONFIG_PART)
    return {
        "get the configuration": f'python -c "from parrot_dist import storage; '
        f"print(storage.read_bytes('{settings}').decode())\" > {name}.yaml",
        "train again": f"python -m parrot_dist.train --config {name}.yaml name={name}-again",
        "evaluate": f"python -m parrot_dist.evaluate {url} --split {split}",
        "is another checkpoint better?": f"python -m parrot_dist.evaluate {url} --split {split} --against OTHER",
        "predict": f"python -m parrot_dist.predict {url} clip.wav",
    }


def _files(report: Report, subject: Subject, evaluation: Evaluation) -> dict[str, bytes]:
    headline, *others = report.results
    scores = {headline.mode: scores_json(headline, report.classes, report.against)}
    scores |= {result.mode: scores_json(result, report.classes) for result in others}
    return {
        "report.html": render_report(report).encode(),
        "scores.json": json.dumps(scores, indent=1).encode(),
        "confusion.svg": confusion_svg(headline.scores.confusion, report.classes).encode(),
        "predictions.parquet": dump_predictions(subject.task, evaluation.rows, evaluation.logits[headline.mode]),
    }
