"""Waveforms changed at random: as far as configured, and the same for the same seed, epoch, step and row."""

from __future__ import annotations

import numpy as np
import pytest

from parrot_dist.data.augmentation import Augmentation
from tests.corpus import tone

TONE = tone(440, 1.0)


def levels(change: Augmentation) -> np.ndarray:
    return np.array([np.sqrt(np.mean(change.apply(TONE, step, 7) ** 2)) for step in range(200)])


def test_the_same_draw_gives_the_same_waveform_and_another_draw_another() -> None:
    change = Augmentation(seed=1, epoch=2, noise=0.1, gain_db=6, speed=0.1)
    heard = change.apply(TONE, 3, 4)
    assert heard.dtype == np.float32
    np.testing.assert_array_equal(heard, change.apply(TONE, 3, 4))
    others = [change.apply(TONE, 4, 4), change.apply(TONE, 3, 5)]
    others += [Augmentation(seed, epoch, 0.1, 6, 0.1).apply(TONE, 3, 4) for seed, epoch in ((2, 2), (1, 3))]
    assert not any(np.array_equal(heard[:8000], other[:8000]) for other in others)


def test_what_is_off_leaves_the_waveform_alone() -> None:
    np.testing.assert_array_equal(Augmentation(1, 2).apply(TONE, 3, 4), TONE)


def test_gain_covers_its_range_in_both_directions() -> None:
    gains = 20 * np.log10(levels(Augmentation(0, 0, gain_db=6)) / np.sqrt(np.mean(TONE**2)))
    assert -6 <= gains.min() < -5
    assert 5 < gains.max() <= 6


def test_noise_is_as_loud_as_drawn_and_follows_the_level_of_the_utterance() -> None:
    ratio = np.sqrt(np.maximum(levels(Augmentation(0, 0, noise=0.5)) ** 2 / np.mean(TONE**2) - 1, 0))
    assert ratio.min() < 0.05
    assert 0.45 < ratio.max() < 0.52
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(Augmentation(0, 0, noise=0.5).apply(silence, 0, 0), silence)


def test_speed_changes_length_and_pitch_together() -> None:
    change = Augmentation(0, 0, speed=0.2)
    for step in range(20):
        heard = change.apply(TONE, step, 7)
        spectrum = np.abs(np.fft.rfft(heard))
        pitch = spectrum.argmax() * 16_000 / len(heard)
        assert 0.8 * 440 - 2 <= pitch <= 1.2 * 440 + 2
        assert pitch * len(heard) == pytest.approx(440 * len(TONE), rel=0.01)
    assert len(change.apply(TONE[:1], 0, 0)) == 1
