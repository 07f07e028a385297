"""A plain classifier on pitch, energy and duration: what a corpus gives away without any speech encoder.

Set beside a trained model it shows what there was to be learnt. The statistics are the classic prosodic ones
(Banse & Scherer 1996; Eyben et al. 2016, the eGeMAPS set, of which these are a small part).
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]

RATE = 8_000  # half of the corpus's rate: speech has its pitch far below, and the FFTs cost half
WINDOW = 400  # 50 ms, three periods of the lowest pitch (Boersma 1993)
HOP = 160  # 20 ms
LOWEST, HIGHEST = 60.0, 500.0  # Hz
VOICED = 0.45  # strength of the autocorrelation above which a frame has a pitch (Boersma 1993)
SILENCE = 0.03  # share of the loudest frame's amplitude below which a frame is silent (Boersma 1993)
TREBLE = 800.0  # Hz, where harmonics begin to fade: the sharp peaks of high ones fall between two lags
FFT = 540  # WINDOW and the longest period, without wrapping round
OCTAVE_COST = 0.02  # what a period of double length loses, so that the shortest of equal ones wins (Boersma 1993)


def prosody_features(waveform: NDArray[np.float32]) -> Floats:
    """(18,) float64 statistics of one utterance `waveform`, (N,) float32 at 16 kHz; finite for any input."""
    halved = np.asarray(waveform, dtype=np.float64)
    halved = halved[: len(halved) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(halved) < WINDOW:
        halved = np.pad(halved, (0, WINDOW - len(halved)))
    frames = sliding_window_view(halved, WINDOW)[::HOP]
    level = np.sqrt(np.mean(frames**2, axis=1))
    pitch = pitch_track(frames, level)
    return np.concatenate([_pitch_statistics(pitch), _energy_statistics(level), _timing(len(halved), pitch, level)])


def prosody_baseline(
    train_features: Floats, train_labels: NDArray[np.int64], test_features: Floats
) -> NDArray[np.int64]:
    """Classes (M,) that a standardised logistic regression fitted on (N, F), (N,) gives `test_features` (M, F).

    Raises:
        ValueError: the training labels are of one class only.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    predictions: NDArray[np.int64] = model.fit(train_features, train_labels).predict(test_features)
    return predictions


def pitch_track(frames: Floats, level: Floats) -> Floats:
    """(T,) pitch in Hz of `frames` (T, WINDOW) at RATE, whose root mean square is `level` (T,); 0 where unvoiced.

    The highest peak of the autocorrelation, divided by that of the window so that long periods are not at a
    disadvantage. Place and height of every peak are those of the parabola through it and its neighbours: a short
    period that falls between two lags would otherwise look weaker than twice its length (Boersma 1993).
    """
    window = np.hanning(WINDOW)
    centred = frames - frames.mean(axis=1, keepdims=True)
    shortest, longest = int(RATE / HIGHEST), int(RATE / LOWEST) + 1
    lags = np.arange(shortest - 1, longest + 2)
    strength = _autocorrelation(centred * window, TREBLE)[:, lags] / _autocorrelation(window, np.inf)[lags]
    before, peak, after = strength[:, :-2], strength[:, 1:-1], strength[:, 2:]
    curve = before - 2 * peak + after
    is_peak = (peak >= before) & (peak >= after) & (curve < 0)
    shift = np.divide(before - after, 2 * curve, out=np.zeros_like(curve), where=is_peak)
    height = np.where(is_peak, peak - (before - after) * shift / 4, -np.inf)
    height -= OCTAVE_COST * np.log2(lags[1:-1] / shortest)
    rows, best = np.arange(len(frames)), height.argmax(axis=1)
    voiced = (height[rows, best] > VOICED) & (level > SILENCE * level.max())
    return np.where(voiced, RATE / (lags[1 + best] + shift[rows, best]), 0.0)


def _autocorrelation(frames: Floats, treble: float) -> Floats:
    """(..., FFT) autocorrelation of (..., WINDOW) below about `treble` Hz, 1 at lag 0; 0 for silence."""
    spectrum = np.fft.rfft(frames, FFT)
    weight = np.exp(-((np.fft.rfftfreq(FFT, 1 / RATE) / treble) ** 2))
    power = np.fft.irfft((spectrum.real**2 + spectrum.imag**2) * weight, FFT)
    energy = power[..., :1]
    correlation: Floats = np.divide(power, energy, out=np.zeros_like(power), where=energy > 0)
    return correlation


def _pitch_statistics(pitch: Floats) -> Floats:
    """(7,): level, range, ends, slope and restlessness of the voiced frames, in semitones over 100 Hz and seconds."""
    where = np.flatnonzero(pitch)
    if len(where) < 2:
        return np.zeros(7)
    tone = 12 * np.log2(pitch[where] / 100)
    low, middle, high = np.percentile(tone, [10, 50, 90])
    third = max(1, len(tone) // 3)
    restless = np.abs(np.diff(tone)).mean()
    return np.array(
        [middle, high - low, tone.std(), tone[:third].mean(), tone[-third:].mean(), _slope(where, tone), restless]
    )


def _energy_statistics(level: Floats) -> Floats:
    """(6,): level, range, spread, slope, restlessness in decibels and seconds, and peak over mean."""
    decibel = 20 * np.log10(level + 1e-5)
    low, middle, high = np.percentile(decibel, [10, 50, 90])
    restless = np.abs(np.diff(decibel)).mean() if len(decibel) > 1 else 0.0
    slope = _slope(np.arange(len(decibel)), decibel)
    return np.array([middle, high - low, decibel.std(), slope, restless, decibel.max() - decibel.mean()])


def _timing(samples: int, pitch: Floats, level: Floats) -> Floats:
    """(5,): duration, shares of voiced and of silent frames, voiced stretches and peaks of energy a second.

    The peaks stand for syllables, and so for the rate of speech (Pfitzinger 1999; de Jong & Wempe 2009).
    """
    seconds = samples / RATE
    voiced = pitch > 0
    stretches = np.count_nonzero(np.diff(voiced.astype(np.int8), prepend=0) > 0)
    smooth = np.convolve(level, np.full(3, 1 / 3), mode="same")
    peaks = (smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:]) & (smooth[1:-1] > 0.2 * smooth.max())
    silent = np.mean(level <= SILENCE * level.max())
    return np.array([np.log(seconds), voiced.mean(), silent, stretches / seconds, np.count_nonzero(peaks) / seconds])


def _slope(frame: NDArray[np.int64], values: Floats) -> float:
    """Least-squares slope of `values` over time, a second; 0 where there is only one frame."""
    time = (frame - frame.mean()) * HOP / RATE
    spread = np.dot(time, time)
    return float(np.dot(time, values) / spread) if spread > 0 else 0.0
