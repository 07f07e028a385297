"""`python -m parrot_dist.evaluate`: the scores of a checkpoint, and all that is written about them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from parrot_dist import config, evaluate, storage
from parrot_dist.training import checkpoint
from parrot_dist.training.task import Task, open_task

FILES = {"confusion.svg", "predictions.parquet", "report.html", "scores.json"}

Program = Callable[..., tuple[int, str, str]]
Trained = Callable[[str], str]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Program:
    """Calls the entry point in an empty folder; exit code, output and messages."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
        return evaluate.main(), *capsys.readouterr()

    return call


def task_of(run: str) -> Task:
    return open_task(config.loads(storage.read_bytes(f"{checkpoint.locate(run).url}/config.yaml").decode()))


def test_everything_is_written_to_the_store_and_to_a_local_folder(
    program: Program, trained: Trained, tmp_path: Path
) -> None:
    run = trained("parrot")
    code, output, _ = program(run)
    assert code == 0
    assert f"{run}/checkpoints/step-00000006 on test, batch-coupled:" in output
    assert f"report: {run}/evaluation/step-00000006-test/report.html" in output
    stored, copies = f"{run}/evaluation/step-00000006-test", tmp_path / "runs" / "run"
    assert set(storage.list_files(stored)) == {path.name for path in copies.iterdir()} == FILES
    for name in FILES:
        assert storage.read_bytes(f"{stored}/{name}") == (copies / name).read_bytes()
    assert (copies / "confusion.svg").read_text().lstrip().startswith(("<svg", "<?xml"))
    report = (copies / "report.html").read_text()
    assert "batch-coupled" in report
    assert "reference" in report
    assert "python -m parrot_dist.train --config" in report
    assert 'src="http' not in report
    assert 'href="http' not in report


def test_the_predictions_are_those_of_the_test_speakers_and_bear_out_the_scores(
    program: Program, trained: Trained, tmp_path: Path
) -> None:
    code, _, _ = program(trained("parrot"), "--out", str(tmp_path / "here"))
    assert code == 0
    task = task_of(trained("parrot"))
    table = pq.read_table(io.BytesIO((tmp_path / "here" / "predictions.parquet").read_bytes())).to_pydict()
    assert sorted(table["key"]) == sorted(task.index.key[task.parts.test].tolist())
    assert not set(table["speaker"]) & set(task.index.speaker[task.parts.train].tolist())
    scores = json.loads((tmp_path / "here" / "scores.json").read_text())
    assert list(scores) == ["batch-coupled", "reference"]
    right = sum(said == label for said, label in zip(table["prediction"], table["label"], strict=True))
    assert scores["batch-coupled"]["accuracy"] == pytest.approx(right / len(table["key"]))


def test_the_headline_can_be_single_utterances_against_the_reference_rows(
    program: Program, trained: Trained, tmp_path: Path
) -> None:
    code, output, _ = program(trained("parrot"), "--transport", "reference", "--json")
    assert code == 0
    scores = json.loads((tmp_path / "runs" / "run" / "scores.json").read_text())
    assert list(scores) == ["reference", "batch-coupled"]
    assert json.loads(output) == scores["reference"]
    assert scores["reference"]["utterances"] == len(task_of(trained("parrot")).parts.test)


def test_the_validation_speakers_get_the_score_that_training_gave_them(program: Program, finished_run) -> None:
    code, output, _ = program(finished_run.url, "--split", "validation", "--json")
    assert code == 0
    assert json.loads(output)["uar"] == pytest.approx(checkpoint.best(finished_run.url).manifest.score)


def test_a_checkpoint_within_an_epoch_has_no_reference_rows(program: Program, trained: Trained, tmp_path: Path) -> None:
    url = f"{trained('parrot')}/checkpoints/step-00000005"
    code, _, message = program(url, "--transport", "reference")
    assert code == 2
    assert f"error: {url}: saved within an epoch, without reference rows" in message
    assert program(url)[0] == 0
    assert list(json.loads((tmp_path / "runs" / "run" / "scores.json").read_text())) == ["batch-coupled"]


@pytest.mark.parametrize("head", ["concat", "cnn"])
def test_a_head_that_transports_nothing_has_one_way_of_predicting(
    program: Program, trained: Trained, tmp_path: Path, head: str
) -> None:
    code, output, _ = program(trained(head), "--json")
    assert code == 0
    scores = json.loads((tmp_path / "runs" / "run" / "scores.json").read_text())
    assert scores == {"model": json.loads(output)}
    assert set(storage.list_files(f"{trained(head)}/evaluation/step-00000006-test")) == FILES


def test_a_place_without_a_checkpoint_is_a_users_mistake(program: Program, bucket_url: str) -> None:
    code, output, message = program(f"{bucket_url}/run")
    assert (code, output) == (2, "")
    assert message == f"error: {bucket_url}/run: neither a complete checkpoint nor a run that has one\n"
