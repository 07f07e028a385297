"""`python -m parrot_dist.predict`: any audio file in, its emotion out, whatever stands beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from parrot_dist import predict, storage
from parrot_dist.training import checkpoint
from parrot_dist.training.export import write_export
from tests.corpus import CLASSES, tone
from tests.jobs import copy_without_reference

Program = Callable[..., tuple[int, str, str]]
Trained = Callable[[str], str]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Calls the entry point; exit code, output and messages."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments)])
        return predict.main(), *capsys.readouterr()

    return call


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """The same second of a tone at 8 kHz with 8 bits, 44.1 kHz in stereo and 96 kHz in floating point, and another."""
    places = [tmp_path / name for name in ("telephone.wav", "disc.wav", "studio.wav", "other.wav")]
    for place, rate, subtype in zip(places, (8000, 44100, 96000), ("PCM_U8", "PCM_16", "FLOAT"), strict=False):
        wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(rate) / rate)
        soundfile.write(place, np.stack([wave, wave], 1) if rate == 44100 else wave, rate, subtype)
    soundfile.write(places[3], tone(300, 0.7), 16000)
    return places


def probabilities(output: str) -> dict[str, dict[str, float]]:
    return {Path(one["file"]).name: one["probabilities"] for one in json.loads(output)}


def test_any_rate_width_and_number_of_channels(program: Program, trained: Trained, clips: list[Path]) -> None:
    code, output, _ = program(trained("parrot"), *clips, "--json")
    assert code == 0
    found = probabilities(output)
    assert list(found) == ["telephone.wav", "disc.wav", "studio.wav", "other.wav"]
    for one in found.values():
        assert list(one) == list(CLASSES)
        assert sum(one.values()) == pytest.approx(1, abs=1e-5)
    assert found["disc.wav"] == pytest.approx(found["studio.wav"], abs=0.02)
    assert found["telephone.wav"] == pytest.approx(found["studio.wav"], abs=0.1)


def test_the_table_has_a_line_for_each_file(program: Program, trained: Trained, clips: list[Path]) -> None:
    code, output, _ = program(trained("parrot"), *clips)
    assert code == 0
    assert output.splitlines()[0].split() == ["file", "emotion", *CLASSES]
    for line, clip in zip(output.splitlines()[1:], clips, strict=True):
        assert line.startswith(str(clip))
        assert line.split()[1] in CLASSES


@pytest.mark.parametrize("head", ["parrot", "concat", "cnn"])
def test_a_prediction_depends_on_its_file_alone(
    program: Program, trained: Trained, clips: list[Path], head: str
) -> None:
    _, output, _ = program(trained(head), *clips, "--json")
    together = probabilities(output)
    _, output, _ = program(trained(head), *reversed(clips), "--json")
    assert probabilities(output) == together
    _, output, _ = program(trained(head), clips[1], "--json")
    assert probabilities(output) == {"disc.wav": together["disc.wav"]}


def test_what_is_no_audio_gets_one_line_and_stops_nothing(
    program: Program, trained: Trained, clips: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("not a sound")
    (tmp_path / "empty.wav").touch()
    bad = [tmp_path / "notes.txt", tmp_path / "missing.wav", tmp_path / "empty.wav", tmp_path]
    code, output, message = program(trained("cnn"), bad[0], clips[0], *bad[1:], clips[3], "--json")
    assert code == 1
    assert list(probabilities(output)) == ["telephone.wav", "other.wav"]
    lines = message.splitlines()
    assert len(lines) == len(bad)
    for line, place in zip(lines, bad, strict=True):
        assert line.startswith(f"error: {place}: ")
    code, output, _ = program(trained("cnn"), *bad, "--json")
    assert (code, json.loads(output)) == (1, [])


def test_files_may_lie_in_the_store(program: Program, trained: Trained, clips: list[Path], bucket_url: str) -> None:
    storage.write_bytes(f"{bucket_url}/clip.wav", clips[0].read_bytes())
    code, output, _ = program(trained("cnn"), f"{bucket_url}/clip.wav", clips[0], "--json")
    assert code == 0
    stored, local = json.loads(output)
    assert stored["file"] == f"{bucket_url}/clip.wav"
    assert stored["probabilities"] == local["probabilities"]


def test_windows_have_their_times(program: Program, trained: Trained, clips: list[Path]) -> None:
    code, output, _ = program(trained("cnn"), *clips[:2], "--window", "0.4", "--hop", "0.3", "--json")
    assert code == 0
    spans = [(Path(one["file"]).name, one["start"], one["end"]) for one in json.loads(output)]
    assert spans == [
        (name, *span) for name in ("telephone.wav", "disc.wav") for span in ((0, 0.4), (0.3, 0.7), (0.6, 1))
    ]
    code, output, _ = program(trained("cnn"), clips[3], "--window", "0.7")
    assert f"{clips[3]} 0.00-0.70 s" in output
    code, output, message = program(trained("cnn"), *clips, "--window", "13")
    assert (code, output) == (2, "")
    assert message.count("error: a window of 13 s every 13 s") == 1
    code, _, message = program(trained("cnn"), clips[0].parent / "none.wav", "--window", "0.5")
    assert code == 1
    assert "none.wav" in message


def test_an_export_in_the_store_predicts_what_its_run_does(
    program: Program, trained: Trained, clips: list[Path], bucket_url: str
) -> None:
    write_export(trained("parrot"), f"{bucket_url}/export")
    storage.write_bytes(f"{bucket_url}/clip.wav", clips[1].read_bytes())
    words = [f"{bucket_url}/clip.wav", "--window", "0.5", "--json"]
    code, output, _ = program(f"{bucket_url}/export", *words)
    assert code == 0
    assert program(trained("parrot"), *words)[1] == output


def test_a_checkpoint_within_an_epoch_predicts(program: Program, trained: Trained, clips: list[Path]) -> None:
    assert program(f"{trained('parrot')}/checkpoints/step-00000005", clips[0])[0] == 0


def test_a_checkpoint_without_reference_rows_is_refused(
    program: Program, trained: Trained, clips: list[Path], bucket_url: str
) -> None:
    url = f"{bucket_url}/run/checkpoints/step-00000006"
    copy_without_reference(checkpoint.locate(trained("parrot")), url)
    code, output, message = program(url, clips[0])
    assert (code, output) == (2, "")
    assert message.startswith(f"error: {url}: without reference rows")


def test_a_place_without_a_checkpoint_is_a_users_mistake(program: Program, clips: list[Path], bucket_url: str) -> None:
    code, _, message = program(f"{bucket_url}/run", clips[0])
    assert code == 2
    assert message.startswith(f"error: {bucket_url}/run: neither a complete checkpoint nor a run that has one")
