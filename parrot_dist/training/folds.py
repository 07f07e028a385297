"""Speaker-independent cross-validation: a run for each fold, and what all test speakers together say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.local.process import interrupted_by_sigterm
from parrot_dist.reporting.metrics import SUMMARIES, Scores, score, spread
from parrot_dist.reporting.plots import confusion_svg
from parrot_dist.reporting.table import share_text, show_table, spread_text
from parrot_dist.training import checkpoint
from parrot_dist.training.evaluation import Evaluation, dump_predictions, evaluate
from parrot_dist.training.inference import Place
from parrot_dist.training.launch import connect
from parrot_dist.training.model import load_checkpoint
from parrot_dist.training.task import Task, open_task
from parrot_dist.training.tasks import room, run_all


def cross_validate(config: Config, arguments: list[str]) -> int:
    """Train and test all folds of `config`, which the command line `arguments` gave, on the cluster at RAY_ADDRESS.

    Returns 0, or the exit code of the first run that did not finish: the same call goes on with it.
    """
    folds = [of_fold(config, fold) for fold in range(open_task(of_fold(config, 0)).folds)]
    with connect():
        with Runs() as runs, ThreadPoolExecutor(room(config.scale, config.scale.num_workers)) as pool:
            codes = list(pool.map(lambda one: runs.train(one, arguments), folds))
        if any(codes):
            return next(code for code in codes if code)
        with interrupted_by_sigterm():
            tested = dict(run_all(test_fold, [(one.run_url,) for one in folds], config.scale))
    evaluations = [tested[fold] for fold in range(len(folds))]
    publish(config, evaluations)
    return 0


def of_fold(config: Config, fold: int) -> Config:
    """The run of one fold."""
    split = replace(config.data.split, fold=fold)
    return replace(config, name=f"{config.name}-fold{fold}", data=replace(config.data, split=split))


class Runs:
    """Training processes, each the driver of its own run; a signal to this process reaches them all."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._signal = 0

    def __enter__(self) -> Runs:
        self._before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def train(self, config: Config, arguments: list[str]) -> int:
        """Run `parrot_dist.train` for one fold, its output under the fold's name; the exit code."""
        if self._signal:
            return 128 + self._signal
        words = [f"name={config.name}", f"data.split.fold={config.data.split.fold}"]
        command = [sys.executable, "-m", "parrot_dist.train", *arguments, *words]
        # In a session of its own: Ctrl-C reaches it once, from here.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            self._processes.append(process)
            if self._signal:  # it came while the process was made
                process.send_signal(self._signal)
            assert process.stdout is not None
            for line in process.stdout:
                print(f"{config.name}: {line.rstrip()}", flush=True)
        return process.returncode

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        for process in self._processes:
            process.send_signal(number)


def test_fold(run_url: str) -> Evaluation:
    """The best checkpoint of a fold's run on the speakers that the fold left out."""
    config, model, reference = load_checkpoint(checkpoint.locate(run_url))
    task = open_task(config)
    place = Place.alone()
    return evaluate(task, model.to(place.device), reference, task.parts.test, place)


@dataclass(frozen=True)
class Summary:
    """The scores of every fold, and of all their predictions together."""

    folds: list[Scores]
    pooled: Scores

    def values(self, name: str) -> list[float]:
        """A score of every fold."""
        return [getattr(fold, name) for fold in self.folds]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        spreads = {name: dict(zip(("mean", "std"), spread(self.values(name)), strict=True)) for name in SUMMARIES}
        return spreads | {"folds": [fold.summaries for fold in self.folds], "confusion": self.pooled.confusion.tolist()}


def summarise(task: Task, evaluations: list[Evaluation], mode: str) -> Summary:
    """What the folds' test speakers say of the predictions made in the way `mode`."""
    classes = len(task.config.data.classes)
    pairs = [(task.labels[one.rows], one.logits[mode].argmax(1)) for one in evaluations]
    labels, predictions = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return Summary([score(*pair, classes) for pair in pairs], score(labels, predictions, classes))


def publish(config: Config, evaluations: list[Evaluation]) -> None:
    """Show the scores; write them, all predictions and the pooled confusion matrix below `<output>/<name>-folds`."""
    task = open_task(config)
    modes = list(evaluations[0].logits)
    summaries = {mode: summarise(task, evaluations, mode) for mode in modes}
    place = storage.join(config.output, f"{config.name}-folds")
    scores = {mode: summary.to_json() for mode, summary in summaries.items()}
    storage.write_bytes(storage.join(place, "scores.json"), json.dumps(scores, indent=1).encode())
    confusion = confusion_svg(summaries[modes[0]].pooled.confusion, config.data.classes)
    storage.write_bytes(storage.join(place, "confusion.svg"), confusion.encode())
    rows = np.concatenate([one.rows for one in evaluations])
    logits = np.concatenate([one.logits[modes[0]] for one in evaluations])
    storage.write_bytes(storage.join(place, "predictions.parquet"), dump_predictions(task, rows, logits))
    for mode, summary in summaries.items():
        print(f"\n{mode}:")
        show_table(["fold", *SUMMARIES.values()], _rows(summary))
    print(f"\nwritten to {place}")


def _rows(summary: Summary) -> list[list[str]]:
    folds = [[str(number), *map(share_text, fold.summaries.values())] for number, fold in enumerate(summary.folds)]
    return [*folds, ["mean", *(spread_text(summary.values(name), digits=3) for name in SUMMARIES)]]
