"""The evaluation of a checkpoint as files: scores, predictions, confusion matrix and the report of its run."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from parrot_dist import config as configuration
from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.reporting.plots import confusion_svg
from parrot_dist.reporting.report import BATCH, REFERENCE, Report, Result, render_report
from parrot_dist.reporting.table import scores_json
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.evaluation import Evaluation, dump_predictions, evaluate, evaluate_prosody
from parrot_dist.training.inference import Place
from parrot_dist.training.model import CONFIG_PART, load_checkpoint, require_reference
from parrot_dist.training.snapshot import read_history
from parrot_dist.training.task import Task, check_corpus, open_task

MODES = {"batch": BATCH, "reference": REFERENCE}


@dataclass(frozen=True)
class Published:
    """Where an evaluation went."""

    checkpoint: str
    classes: list[str]
    places: list[str]


def evaluate_checkpoint(url: str, split: str, transport: str | None, out: Path | None) -> tuple[Result, Published]:
    """Evaluate the checkpoint at `url` on a split and write everything about it; returns the headline.

    Raises:
        UserError: no checkpoint there, its corpus or encoders are gone or changed, or it has no reference rows.
    """
    found = checkpoint.locate(url)
    config, model, reference = load_checkpoint(found)
    if transport == "reference":
        require_reference(found, model, reference)
    task = open_task(config)
    check_corpus(task, found)
    place = Place.alone()
    model.to(place.device)
    rows = getattr(task.parts, split)
    evaluation = evaluate(task, model, reference, rows, place)
    for one in evaluation.skipped:
        print(f"skipped {one.key}: {one.reason}", file=sys.stderr)
    results = evaluation.results(task)
    results.sort(key=lambda result: result.mode != MODES.get(transport or "", result.mode))
    run_url = found.url.rpartition(f"/{checkpoint.FOLDER}/")[0] or found.url
    report = _report(found, run_url, split, task, evaluation, results, place)
    files = _files(report, task, evaluation, results[0])
    remote = storage.join(run_url, "evaluation", f"step-{found.manifest.step:08d}-{split}")
    local = out or Path("runs") / config.name
    for name, data in files.items():
        storage.write_bytes(storage.join(remote, name), data)
        storage.write_bytes(str(local / name), data)
    places = [storage.join(remote, "report.html"), str(local / "report.html")]
    return results[0], Published(found.url, list(config.data.classes), places)


def _report(
    found: Found, run_url: str, split: str, task: Task, evaluation: Evaluation, results: list[Result], place: Place
) -> Report:
    config = task.config
    return Report(
        name=config.name,
        checkpoint=found.url,
        classes=config.data.classes,
        split=split,
        results=results,
        speakers=len(set(task.speakers(evaluation.rows))),
        corpora=sorted(set(task.index.corpus[evaluation.rows].tolist())),
        history=read_history(checkpoint.newest(run_url) or found),
        configuration=configuration.dumps(config),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("parrot-dist", "torch", "transformers", "ray", "POT")},
        commands=_commands(found, config, run_url),
        prosody=None if split == "train" else evaluate_prosody(task, evaluation.rows, place),
    )


def _commands(found: Found, config: Config, run_url: str) -> dict[str, str]:
    settings = storage.join(run_url, CONFIG_PART)
    return {
        "get the configuration": f'python -c "from parrot_dist import storage; '
        f"print(storage.read_bytes('{settings}').decode())\" > {config.name}.yaml",
        "train again": f"python -m parrot_dist.train --config {config.name}.yaml name={config.name}-again",
        "evaluate": f"python -m parrot_dist.evaluate {found.url}",
        "predict": f"python -m parrot_dist.predict {found.url} clip.wav",
    }


def _files(report: Report, task: Task, evaluation: Evaluation, headline: Result) -> dict[str, bytes]:
    scores = {result.mode: scores_json(result.scores, result.intervals, report.classes) for result in report.results}
    return {
        "report.html": render_report(report).encode(),
        "scores.json": json.dumps(scores, indent=1).encode(),
        "confusion.svg": confusion_svg(headline.scores.confusion, report.classes).encode(),
        "predictions.parquet": dump_predictions(task, evaluation.rows, evaluation.logits[headline.mode]),
    }
