"""The scores of an evaluation as plain values, for `--json` and scores.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from parrot_dist.reporting.calibration import EDGES, Calibration
from parrot_dist.reporting.comparison import Against
from parrot_dist.reporting.metrics import Scores
from parrot_dist.reporting.result import Result


def scores_json(result: Result, classes: Sequence[str], against: Against | None = None) -> dict[str, Any]:
    """`result` as plain values, `against` in its own key if given; what is not defined (NaN) is None, as in JSON."""
    scores = result.scores
    values = _summaries(scores) | {
        "intervals": {name: [_defined(low), _defined(high)] for name, (low, high) in result.intervals.items()},
        "recall": {name: _defined(float(recall)) for name, recall in zip(classes, scores.recall, strict=True)},
        "classes": list(classes),
        "confusion": scores.confusion.tolist(),
        "calibration": _calibration_json(result.calibration),
        "speakers": {name: _summaries(group) for name, group in result.speakers.items()},
        "languages": {name: _summaries(group) for name, group in result.languages.items()},
        "corpora": {name: _summaries(group) for name, group in result.corpora.items()},
    }
    return values | ({"against": _against_json(against)} if against else {})


def _summaries(scores: Scores) -> dict[str, Any]:
    return scores.summaries | {"utterances": scores.utterances}


def _calibration_json(calibration: Calibration) -> dict[str, Any]:
    bins = zip(calibration.count.tolist(), calibration.confidence, calibration.accuracy, strict=True)
    return {
        "ece": calibration.ece,
        "edges": EDGES.round(6).tolist(),
        "bins": [
            {"utterances": count, "confidence": _defined(float(confidence)), "accuracy": _defined(float(accuracy))}
            for count, confidence, accuracy in bins
        ],
    }


def _against_json(against: Against) -> dict[str, Any]:
    comparison = against.comparison
    return {
        "checkpoint": against.checkpoint,
        "mode": against.result.mode,
        "scores": _summaries(against.result.scores),
        "differences": {
            name: {"value": one.value, "interval": [_defined(end) for end in one.interval], "p": _defined(one.p)}
            for name, one in comparison.differences.items()
        },
        "only_first_right": comparison.only_first,
        "only_second_right": comparison.only_second,
        "mcnemar_p": comparison.mcnemar,
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
