from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from parrot_dist.reporting import prosody
from parrot_dist.reporting.prosody import prosody_baseline, prosody_features

SECONDS = np.arange(2 * 16_000) / 16_000
MIDDLE, RANGE, START, END = 0, 1, 3, 4  # of the pitch statistics, in semitones over 100 Hz
DURATION, VOICED, SILENT, STRETCHES = 13, 14, 15, 16


def harmonics(pitch, count=12):
    """(N,) harmonic complex of `pitch` Hz, a number or (N,)."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch, SECONDS.shape)) / 16_000
    return sum(np.sin(number * phase + number) / number for number in range(1, count + 1)).astype(np.float32)


def semitones(pitch):
    return 12 * np.log2(pitch / 100)


def tracked(waveform):
    halved = waveform.astype(np.float64).reshape(-1, 2).mean(axis=1)
    frames = sliding_window_view(halved, prosody.WINDOW)[:: prosody.HOP]
    return prosody.pitch_track(frames, np.sqrt(np.mean(frames**2, axis=1)))


@given(st.floats(65, 490), st.integers(1, 12))
def test_every_frame_of_a_tone_has_its_pitch(pitch, count):
    np.testing.assert_allclose(tracked(harmonics(pitch, count)), pitch, rtol=0.02)


@pytest.mark.parametrize("pitch", [90.0, 210.0, 300.0])
def test_noise_does_not_move_the_pitch(pitch):
    noise = np.random.default_rng(0).normal(0, 0.2, len(SECONDS))
    found = tracked(harmonics(pitch) + noise)
    assert np.median(found) == pytest.approx(pitch, rel=0.02)
    assert np.mean(found > 0) > 0.95


def test_noise_alone_has_no_pitch():
    noise = np.random.default_rng(0).normal(0, 0.3, len(SECONDS)).astype(np.float32)
    assert prosody_features(noise)[VOICED] < 0.05


def test_a_rising_voice_rises():
    features = prosody_features(harmonics(150 * 2 ** (SECONDS / 2)))  # an octave in two seconds
    assert features[MIDDLE] == pytest.approx(semitones(150) + 6, abs=0.3)
    assert features[RANGE] == pytest.approx(0.8 * 12, abs=0.6)
    assert features[END] - features[START] == pytest.approx(8, abs=0.6)
    assert features[5] == pytest.approx(6, abs=0.3)  # semitones a second


def test_pauses_are_counted():
    bursts = (np.floor(SECONDS * 4) % 2 == 0).astype(np.float32)  # four of a quarter of a second
    features = prosody_features(harmonics(120) * bursts)
    assert features[STRETCHES] == pytest.approx(2, abs=0.01)
    assert features[SILENT] == pytest.approx(0.5, abs=0.15)
    assert features[DURATION] == pytest.approx(np.log(2))


@given(st.integers(0, 1200), st.floats(0, 1), st.integers(0, 3))
def test_any_clip_has_finite_features_of_one_length(samples, gain, seed):
    clip = (gain * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)
    features = prosody_features(clip)
    assert features.shape == (18,)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()


def test_silence_is_not_voiced():
    features = prosody_features(np.zeros(40_000, np.float32))
    assert np.isfinite(features).all()
    assert features[VOICED] == 0


def test_pitch_and_rhythm_do_not_depend_on_the_gain():
    loud, quiet = prosody_features(harmonics(180)), prosody_features(0.1 * harmonics(180))
    np.testing.assert_allclose(quiet[:7], loud[:7], atol=1e-4)
    np.testing.assert_allclose(quiet[13:], loud[13:])


def test_the_baseline_tells_voices_apart_that_differ_in_pitch_and_is_repeatable():
    rng = np.random.default_rng(1)
    labels = np.arange(24) % 2
    features = np.stack([prosody_features(harmonics(rng.uniform(100, 130) * (1 + label))) for label in labels])
    first = prosody_baseline(features[:12], labels[:12], features[12:])
    np.testing.assert_array_equal(first, labels[12:])
    np.testing.assert_array_equal(first, prosody_baseline(features[:12], labels[:12], features[12:]))
