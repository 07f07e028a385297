"""An export stands alone, is the checkpoint bit for bit, and is refused when it is not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from parrot_dist import ParrotModel, Predictor, export
from parrot_dist.errors import UserError
from parrot_dist.training import checkpoint
from parrot_dist.training.export import write_export
from tests.corpus import CLASSES, tone
from tests.jobs import Material, settings, train_here, write_material
from tests.keys import contents_of, holding

FRESH = """
import pickle, socket, sys
import torch
import transformers.models.hubert.modeling_hubert
from parrot_dist import Predictor
from tests.corpus import tone

def refuse(*_, **__):
    raise AssertionError("an export needs no network and is not unpickled")

socket.socket.connect = socket.getaddrinfo = refuse
torch.load = pickle.load = pickle.loads = pickle.Unpickler = refuse
predictor = Predictor.load(sys.argv[1], device="cpu")
print(" ".join(predictor.predict(tone(pitch, 0.4)).tobytes().hex() for pitch in (150, 250, 350)))
"""


@pytest.fixture(scope="module")
def exported(local_run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that nobody changes."""
    folder = tmp_path_factory.mktemp("exported")
    write_export(local_run, str(folder))
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """An export to spoil."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def bits(predictor: Predictor) -> str:
    return " ".join(predictor.predict(tone(pitch, 0.4)).tobytes().hex() for pitch in (150, 250, 350))


def test_an_export_holds_nothing_of_the_environment(
    local_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    write_export(local_run, str(tmp_path))
    contents = contents_of(tmp_path)
    assert holding(CLASSES[0], contents)
    assert holding("planted-secret", contents) == []


def test_without_run_encoders_or_network_a_fresh_process_gets_the_same_bits(tmp_path: Path) -> None:
    material = write_material(str(tmp_path / "material"))
    run = train_here(settings(material, str(tmp_path / "runs"), "optim.epochs=1", "optim.lr=0.01"))
    expected = bits(Predictor.load(run, device="cpu"))
    write_export(run, str(tmp_path / "export"))
    (tmp_path / "export").rename(tmp_path / "elsewhere")
    for gone in ("material", "runs"):
        shutil.rmtree(tmp_path / gone)
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are split by their number
    command = [sys.executable, "-c", FRESH, str(tmp_path / "elsewhere")]
    done = subprocess.run(command, env=threads, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr
    assert done.stderr == ""


def test_a_head_on_one_encoder_has_only_that(local_material: Material, tmp_path: Path) -> None:
    words = ("optim.epochs=1", "fusion.name=cnn", "fusion.branch=attention")
    run = train_here(settings(local_material, str(tmp_path / "runs"), *words))
    write_export(run, str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "head.safetensors", "attention"}
    assert bits(Predictor.load(tmp_path / "out")) == bits(Predictor.load(run))


def test_the_encoders_in_it_are_the_trained_ones(local_run: str, local_material: Material, exported: Path) -> None:
    found = checkpoint.locate(local_run)
    trained = Predictor.load(found.url).model.state_dict()
    model = ParrotModel.from_pretrained(str(exported))
    assert not model.training
    assert trained.keys() == model.state_dict().keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    for branch, encoder in model.branches():
        assert encoder.digest != found.manifest.encoders[branch]["digest"]


def test_all_weights_are_safetensors(exported: Path) -> None:
    files = {str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "head.safetensors",
        "reference.safetensors",
        "mamba/model.safetensors",
        "attention/model.safetensors",
        "attention/config.json",
        "attention/preprocessor_config.json",
    }


@pytest.mark.parametrize("name", ["head.safetensors", "reference.safetensors", "attention/config.json"])
def test_a_damaged_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{copy}: {name} is damaged"):
        Predictor.load(copy)
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{name} has .* bytes and not"):
        Predictor.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Predictor.load(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "configuration": 0, "files": {}}'])
def test_another_config_json_is_named(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is not that of an export"):
        Predictor.load(copy)


def test_a_newer_format_and_a_missing_description_are_named(copy: Path) -> None:
    described = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(described | {"format": 2}))
    with pytest.raises(UserError, match=r"config\.json is of format 2"):
        Predictor.load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Predictor.load(copy)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        ParrotModel.from_pretrained(str(copy.parent))


def test_a_card_may_be_rewritten(copy: Path, exported: Path) -> None:
    (copy / "README.md").write_text("mine")
    assert bits(Predictor.load(copy)) == bits(Predictor.load(exported))


def test_nothing_is_written_over(local_run: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something already"):
        write_export(local_run, str(tmp_path))
    with pytest.raises(UserError, match="a file is where a folder should be"):
        write_export(local_run, str(tmp_path / "thesis.tex"))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_card_says_what_was_trained_on_and_that_nothing_was_evaluated(local_run: str, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "45 utterances" in card
    assert "of 5 speakers" in card
    assert "Corpora: tones" in card
    assert "| `fusion.name` | parrot |" in card
    assert f"None were on storage when this was exported. `python -m parrot_dist.evaluate {local_run}" in card
    for name in CLASSES:
        assert name in card


def test_the_card_has_the_scores_of_this_checkpoint_and_their_intervals(
    local_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(local_run, tmp_path / "run"))
    write_scores(run, 6, 0.625)
    write_scores(run, 3, 0.1)
    monkeypatch.setattr("sys.argv", ["export", str(run), str(tmp_path / "out")])
    assert export.main() == 0
    assert f"predict: python -m parrot_dist.predict {tmp_path / 'out'}" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Reference, 18 utterances:" in card
    assert "| UAR | 0.625 | 0.500 to 0.750 |" in card
    assert "| anger | 0.750 |" in card
    assert "| joy | - |" in card
    assert "0.100" not in card
    assert "On speakers it was not trained on, with 95 % intervals" in card


def write_scores(run: Path, step: int, uar: float) -> None:
    """Write what an evaluation of the checkpoint at `step` would."""
    scores = {"uar": uar, "intervals": {"uar": [0.5, 0.75]}, "recall": {"anger": 0.75, "joy": None}, "utterances": 18}
    place = run / "evaluation" / f"step-{step:08d}-test"
    place.mkdir(parents=True)
    (place / "scores.json").write_text(json.dumps({"reference": scores}))


def test_the_card_does_not_pass_known_speakers_for_new_ones(tmp_path: Path) -> None:
    material = write_material(str(tmp_path / "material"))
    words = ("optim.epochs=1", "fusion.name=cnn", "fusion.branch=attention", "data.split.by=utterances")
    run = train_here(settings(material, str(tmp_path / "runs"), *words))
    write_scores(Path(run), checkpoint.locate(run).manifest.step, 0.9)
    write_export(run, str(tmp_path / "with"))
    shutil.rmtree(material.corpus)
    write_export(run, str(tmp_path / "without"))
    with_corpus, without = ((tmp_path / name / "README.md").read_text() for name in ("with", "without"))
    assert re.search(r"recordings it was not trained on, of (\d) speakers, \1 of whom it was trained on", with_corpus)
    assert "On the test part of its corpus, with 95 %" in without
    for card in (with_corpus, without):
        assert "speakers it was not trained on" not in card
        assert "on the validation part, by which" in card


def test_predictions_of_an_export_are_probabilities(exported: Path) -> None:
    predicted = Predictor.load(exported).predict(tone(200, 0.5))
    assert predicted.shape == (len(CLASSES),)
    assert np.isclose(predicted.sum(), 1)
