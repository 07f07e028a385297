"""`Predictor` in other programs: threads, batches, long recordings, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from parrot_dist import Predictor
from parrot_dist.errors import UserError
from tests.corpus import CLASSES, tone


@pytest.fixture(scope="module")
def predictor(local_run: str) -> Predictor:
    return Predictor.load(Path(local_run))


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [tone(100 + 40 * number, 0.2 + 0.17 * (number % 5), seed=number) for number in range(12)]


def test_the_package_itself_is_light() -> None:
    code = "import sys, parrot_dist; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_that_predict_at_once_get_the_bits_that_one_gets(predictor: Predictor, clips: list[np.ndarray]) -> None:
    alone = [predictor.predict(clip).tobytes() for clip in clips]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            assert [one.tobytes() for one in pool.map(predictor.predict, clips)] == alone
    assert len(set(alone)) == len(clips)


def test_a_batch_gives_what_its_rows_give_in_any_order(predictor: Predictor, clips: list[np.ndarray]) -> None:
    alone = np.stack([predictor.predict(clip) for clip in clips])
    assert alone.shape == (len(clips), len(CLASSES))
    np.testing.assert_allclose(predictor.predict_batch(clips), alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(predictor.predict_batch(clips[::-1])[::-1], alone, rtol=0, atol=1e-5)
    assert predictor.predict_batch([]).shape == (0, len(CLASSES))


def test_windows_of_a_file_are_utterances_with_their_times(predictor: Predictor, tmp_path: Path) -> None:
    wave = np.concatenate([tone(120, 0.8, 1), 0.1 * tone(400, 0.9, 2)])
    soundfile.write(tmp_path / "long.wav", wave, 16000, "FLOAT")
    found = list(predictor.predict_windows(tmp_path / "long.wav", 0.5, 0.25))
    assert [(window.start, window.end) for window in found] == [
        (0.0, 0.5),
        (0.25, 0.75),
        (0.5, 1.0),
        (0.75, 1.25),
        (1.0, 1.5),
        (1.2, 1.7),
    ]
    for start, end, probabilities in found:
        expected = predictor.predict(wave[round(start * 16000) : round(end * 16000)])
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    again = list(predictor.predict_windows(wave, 0.5, 0.25))
    assert [one.probabilities.tobytes() for one in again] == [one.probabilities.tobytes() for one in found]


def test_a_recording_shorter_than_a_window_is_one(predictor: Predictor, clips: list[np.ndarray]) -> None:
    (only,) = predictor.predict_windows(clips[0], 3, 1)
    assert (only.start, only.end) == (0.0, 0.2)
    assert only.probabilities.tobytes() == predictor.predict(clips[0]).tobytes()


@pytest.mark.parametrize(
    ("window", "hop"), [(0, 0), (1, 0), (1, 2), (1, -1), (12.5, 1), (float("nan"), 1), (float("inf"), 1)]
)
def test_a_length_out_of_range_is_refused_before_anything_is_read(
    predictor: Predictor, window: float, hop: float
) -> None:
    with pytest.raises(UserError, match="a window at most 12 s"):
        predictor.predict_windows("nowhere.wav", window, hop)


def test_a_waveform_is_neither_changed_nor_taken_if_it_is_none(predictor: Predictor) -> None:
    wave = 0.3 * tone(200, 0.4)
    wave.setflags(write=False)
    before = wave.copy()
    predictor.predict(wave)
    assert np.array_equal(wave, before)
    for bad in (wave[:0], wave[None], np.full(100, np.nan, np.float32), np.ones(100, np.complex64)):
        with pytest.raises(ValueError, match="waveform 0 of the batch"):
            predictor.predict(bad)


def test_loading_leaves_the_callers_random_numbers_alone(local_run: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Predictor.load(local_run)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_predicts_what_the_cpu_does(local_run: str, clips: list[np.ndarray]) -> None:
    cpu, gpu = (Predictor.load(local_run, device=device).predict_batch(clips) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, rtol=0, atol=1e-2)
