"""`python -m parrot_dist.evaluate`: the scores of a checkpoint, and all that is written about them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from parrot_dist import configuration, evaluate, storage
from parrot_dist.local.s3 import S3Server
from parrot_dist.reporting.provenance import read_starts
from parrot_dist.training import checkpoint
from parrot_dist.training.task import Task, open_task
from tests.jobs import Material, copy_without_reference, settings, train_here
from tests.keys import holding, keys_of, secret_of

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
    return open_task(configuration.loads(storage.read_bytes(f"{checkpoint.locate(run).url}/config.yaml").decode()))


def test_everything_is_written_to_the_store_and_to_a_local_folder(
    program: Program, trained: Trained, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("parrot")
    for name, value in keys_of(s3).items():
        monkeypatch.setenv(name, value)
    code, output, _ = program(run)
    assert code == 0
    assert f"{run}/checkpoints/step-00000006 on test, batch-coupled:" in output
    assert f"report: {run}/evaluation/step-00000006-test/report.html" in output
    stored, copies = f"{run}/evaluation/step-00000006-test", tmp_path / "runs" / "run"
    assert set(storage.list_files(stored)) == {path.name for path in copies.iterdir()} == FILES
    for name in FILES:
        assert storage.read_bytes(f"{stored}/{name}") == (copies / name).read_bytes()
    assert (copies / "confusion.svg").read_text().lstrip().startswith(("<svg", "<?xml"))
    contents = {"output": output.encode()} | {name: (copies / name).read_bytes() for name in FILES}
    assert {"output", "report.html"} <= set(holding(run, contents))
    assert holding(secret_of(s3), contents) == []
    report = (copies / "report.html").read_text()
    assert "batch-coupled" in report
    assert "reference" in report
    assert "python -m parrot_dist.train --config" in report
    assert "R_p (Mamba)" in report
    assert "What transport brings together" in report
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
    assert set(scores["batch-coupled"]["speakers"]) == {f"tones/{speaker}" for speaker in table["speaker"]}
    report = (tmp_path / "here" / "report.html").read_text()
    assert report.count("data:audio/flac;base64,") == min(12, len(table["key"]) - right)


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


def test_the_report_says_what_training_ran_on(program: Program, finished_run, tmp_path: Path) -> None:
    (start,) = read_starts(finished_run.url)
    assert start["torch"] == version("torch")
    assert "commit" not in start  # what Ray ships to its cluster is no checkout
    assert program(finished_run.url)[0] == 0
    assert '<th scope="col" class="version">training' in (tmp_path / "runs" / "run" / "report.html").read_text()


def test_a_checkpoint_within_an_epoch_predicts_in_both_ways(program: Program, trained: Trained, tmp_path: Path) -> None:
    code, _, _ = program(f"{trained('parrot')}/checkpoints/step-00000005", "--transport", "reference")
    assert code == 0
    assert list(json.loads((tmp_path / "runs" / "run" / "scores.json").read_text())) == ["reference", "batch-coupled"]


def test_a_checkpoint_without_reference_rows_predicts_in_batches_only(
    program: Program, trained: Trained, bucket_url: str, tmp_path: Path
) -> None:
    url = f"{bucket_url}/run/checkpoints/step-00000006"
    copy_without_reference(checkpoint.locate(trained("parrot")), url)
    code, _, message = program(url, "--transport", "reference")
    assert code == 2
    assert f"error: {url}: without reference rows" in message
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
    report = (tmp_path / "runs" / "run" / "report.html").read_text()
    assert "What transport brings together" not in report
    assert ("R_p (Mamba)" in report) == (head == "concat")


def test_two_checkpoints_are_compared_on_the_same_utterances(
    program: Program, trained: Trained, tmp_path: Path
) -> None:
    run, other = trained("parrot"), trained("concat")
    code, output, _ = program(run, "--against", other)
    assert code == 0
    assert f"against {other}/checkpoints/step-00000006, model:" in output
    scores = json.loads((tmp_path / "runs" / "run" / "scores.json").read_text())
    against = scores["batch-coupled"]["against"]
    assert "against" not in scores["reference"]
    assert f"{other}/checkpoints/step-00000006" in (tmp_path / "runs" / "run" / "report.html").read_text()
    code, alone, _ = program(other, "--json")
    for name, value in json.loads(alone).items():
        if name in against["scores"]:
            assert against["scores"][name] == pytest.approx(value)
            gap = scores["batch-coupled"][name] - value
            assert name == "utterances" or against["differences"][name]["value"] == pytest.approx(gap)


def test_a_checkpoint_that_knows_the_speakers_is_not_compared_with_one_that_does_not(
    program: Program, trained: Trained, material: Material, s3: S3Server
) -> None:
    words = ["fusion.name=concat", "optim.epochs=1", "data.split.fold=1"]
    other = train_here(settings(material, f"s3://{s3.bucket}/other-fold", *words))
    code, output, message = program(trained("parrot"), "--against", other)
    assert (code, output) == (2, "")
    assert "--against: 18 of the 18 utterances of " in message
    assert "which was trained on 9 of them" in message
    assert "tones/s5" in message
    assert "same seed and data.split" in message


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [({"index_digest": "0" * 64}, "another corpus (index 000000000000)"), ({"classes": ["joy", "anger"]}, "classes")],
)
def test_checkpoints_of_another_corpus_or_of_other_classes_are_not_compared(
    program: Program, trained: Trained, bucket_url: str, changed: dict[str, object], complaint: str
) -> None:
    found = checkpoint.locate(trained("concat"))
    manifest = json.dumps(asdict(replace(found.manifest, **changed)))  # type: ignore[arg-type]
    storage.write_bytes(f"{bucket_url}/other/{checkpoint.MANIFEST}", manifest.encode())
    code, output, message = program(trained("parrot"), "--against", f"{bucket_url}/other")
    assert (code, output) == (2, "")
    assert f"--against: {bucket_url}/other " in message
    assert complaint in message


def test_a_place_without_a_checkpoint_is_a_users_mistake(program: Program, bucket_url: str) -> None:
    code, output, message = program(f"{bucket_url}/run")
    assert (code, output) == (2, "")
    assert message == f"error: {bucket_url}/run: neither a complete checkpoint nor a run that has one\n"
