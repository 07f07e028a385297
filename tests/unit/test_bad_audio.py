"""Recordings that nobody means to have, on their whole way: corpus folder, shards, training, evaluation, prediction."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from parrot_dist import configuration, predict, storage
from parrot_dist.config import Config
from parrot_dist.data.audio import SAMPLE_RATE
from parrot_dist.data.index import Row, read_index, write_index
from parrot_dist.errors import UserError
from parrot_dist.training.evaluation import embed
from parrot_dist.training.inference import Place
from parrot_dist.training.rank import train_rank
from parrot_dist.training.subject import open_subject
from shards import build
from shards.tar import END, pack
from tests.corpus import CLASSES, tone
from tests.jobs import Material, settings
from tests.ranks import Listener

MAX_SECONDS = 1
TRAINING, TESTED = 6, 5  # speakers that fall into these parts
NOT_FINITE = "the audio holds values that are not finite"


class Recording(NamedTuple):
    wave: np.ndarray
    rate: int
    subtype: str

    def write(self, place: Any) -> None:
        soundfile.write(place, self.wave, self.rate, self.subtype, format="WAV")


NAN = Recording(np.where(np.arange(5000) == 100, np.nan, tone(200, 1)[:5000]), SAMPLE_RATE, "FLOAT")
TEN_MINUTES = Recording(np.tile(tone(200, 1), 600), SAMPLE_RATE, "PCM_16")
USABLE = {
    "silence": Recording(np.zeros(SAMPLE_RATE), SAMPLE_RATE, "PCM_16"),
    "one-sample": Recording(np.ones(1), SAMPLE_RATE, "PCM_16"),
    "telephone": Recording(tone(400, 0.3), 8000, "PCM_U8"),
    "studio": Recording(tone(50, 3)[:, None].repeat(2, 1), 96000, "FLOAT"),
}


class Built(NamedTuple):
    url: str
    skipped: Mapping[str, str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The shards of two emotions by seven speakers, two of whom are recorded strangely."""
    folder = tmp_path_factory.mktemp("strange") / "corpus"  # its name is the corpus's, and decides the split
    folder.mkdir()
    for label, emotion in enumerate(CLASSES):
        (folder / emotion).mkdir()
        for speaker in range(7):
            for take in range(2):
                wave = tone(150 + 150 * label, 0.3, seed=100 * speaker + take)
                Recording(wave, SAMPLE_RATE, "PCM_16").write(folder / emotion / f"s{speaker}_{take}.wav")
        for speaker in (TRAINING, TESTED):
            for name, recording in (USABLE | {"nan": NAN}).items():
                recording.write(folder / emotion / f"s{speaker}_{name}.wav")
    TEN_MINUTES.write(folder / CLASSES[0] / f"s{TRAINING}_ten-minutes.wav")
    words = ["corpus=folder", f"source={folder}", f"out={tmp_path_factory.mktemp('shards')}"]
    chosen = build.parse(words)
    return Built(chosen.out, build.build(chosen, build.survey(chosen))[1])


def job(material: Material, shards: str, output: Path, *words: str) -> Config:
    short = (f"data.shards={shards}", f"data.max_seconds={MAX_SECONDS}", "optim.epochs=1", "optim.precision=float32")
    return configuration.load(None, settings(material, str(output), *short, *words))


@pytest.fixture(scope="module")
def trained(built: Built, local_material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Listener]:
    config, listener = job(local_material, built.url, tmp_path_factory.mktemp("runs")), Listener()
    train_rank(config, Place(), listener, lambda record: None)
    return config.run_url, listener


def test_shards_take_all_but_what_is_not_finite(built: Built) -> None:
    paths = (f"{emotion}/s{speaker}_nan.wav" for emotion in CLASSES for speaker in (TRAINING, TESTED))
    assert built.skipped == dict.fromkeys(paths, NOT_FINITE)
    index = read_index(built.url)
    lengths = {"silence": 1, "one-sample": 1 / SAMPLE_RATE, "telephone": 0.6, "studio": 0.5, "ten-minutes": 600}
    for name, seconds in lengths.items():
        samples = {n for key, n in zip(index.key, index.samples, strict=True) if f"_{name}-" in key}
        assert samples == {round(seconds * SAMPLE_RATE)}, name


def test_all_of_them_train_and_are_evaluated(trained: tuple[str, Listener]) -> None:
    url, listener = trained
    assert [data for kind, data in listener.events if kind == "warning"] == []
    (record,) = (data for kind, data in listener.events if kind == "epoch")
    assert np.isfinite([record["train_loss"], record["val_loss"]]).all()
    task, model = (subject := open_subject(url, None)).task, subject.model
    for rows, speaker in ((task.parts.train, TRAINING), (task.parts.test, TESTED)):
        strange = rows[task.index.speaker[rows] == f"s{speaker}"]
        assert len(strange) >= 2 * (2 + len(USABLE))
        embedded = embed(task, model, strange, Place(), prosody=True)
        assert embedded.skipped == []
        assert embedded.mamba.isfinite().all()
        assert embedded.attention.isfinite().all()
        assert np.isfinite(embedded.prosody).all()


def test_what_is_not_finite_in_shards_of_others_is_left_out_of_training_or_ends_it(
    built: Built, local_material: Material, tmp_path: Path
) -> None:
    url, index = str(tmp_path / "corpus"), read_index(built.url)
    NAN.write(file := io.BytesIO())
    facts = (CLASSES[0], f"s{TRAINING}", str(index.corpus[0]), "none")
    sample = pack("nan", {"wav": file.getvalue(), "json": b"{}"})
    rows = [Row(*(getattr(index, name)[row] for name in Row._fields)) for row in range(len(index))]
    rows.append(Row("nan", "others.tar", 0, len(sample), len(NAN.wave), *facts))
    shards = {name: storage.read_bytes(storage.join(built.url, name)) for name in index.shard_sizes}
    for name, data in (shards | {"others.tar": sample + END}).items():
        storage.write_bytes(storage.join(url, name), data)
    write_index(url, rows, dict(index.shard_sizes) | {"others.tar": len(sample + END)})
    listener = Listener()
    words = ("fusion.name=cnn", "encoders.mamba.unfreeze=none")
    train_rank(
        job(local_material, url, tmp_path / "a", "data.max_broken=0.1", *words), Place(), listener, lambda _: None
    )
    assert [data["text"] for kind, data in listener.events if kind == "warning"] == [f"skipped nan: {NOT_FINITE}"]
    with pytest.raises(UserError, match=r"data\.max_broken: 1 of .*: nan"):
        train_rank(job(local_material, url, tmp_path / "b", *words), Place(), Listener(), lambda _: None)


def test_a_prediction_or_one_line_for_each(
    trained: tuple[str, Listener], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = TEN_MINUTES._replace(wave=TEN_MINUTES.wave[: MAX_SECONDS * SAMPLE_RATE])
    recordings = USABLE | {"ten-minutes": TEN_MINUTES, "its-beginning": heard, "nan": NAN}
    for name, recording in recordings.items():
        recording.write(tmp_path / f"{name}.wav")
    files = [str(tmp_path / f"{name}.wav") for name in recordings]
    monkeypatch.setattr("sys.argv", ["predict", trained[0], *files, "--json"])
    assert predict.main() == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        f"{tmp_path / 'ten-minutes.wav'}: only the first 1 of 600 s are heard; --window predicts the rest too",
        f"error: {tmp_path / 'nan.wav'}: {NOT_FINITE}",
    ]
    found = {Path(one["file"]).stem: one["probabilities"] for one in json.loads(shown.out)}
    assert found.keys() == recordings.keys() - {"nan"}
    assert all(sum(one.values()) == pytest.approx(1, abs=1e-5) for one in found.values())
    assert found["ten-minutes"] == found["its-beginning"]
    monkeypatch.setattr("sys.argv", ["predict", trained[0], files[-2], str(tmp_path / "studio.wav"), "--window", "0.5"])
    assert predict.main() == 0
    assert capsys.readouterr().err == ""


def test_the_help_of_predict_says_what_is_heard_of_a_long_file() -> None:
    assert "only the beginning of a long file is heard" in " ".join(predict.command_line().format_help().split())
