"""Waveforms changed at random for training, on any cluster alike: seed, epoch, step and row decide what is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from parrot_dist.data.audio import SAMPLE_RATE, Waveform


@dataclass(frozen=True)
class Augmentation:
    """How far the waveforms of one epoch are changed; 0 leaves a property as it is.

    Attributes:
        noise: largest level of white noise, as a share of the utterance's root mean square.
        gain_db: largest change of the level, in dB, up or down.
        speed: largest change of the speed, and the pitch with it, as a share of it, up or down.
    """

    seed: int
    epoch: int
    noise: float = 0.0
    gain_db: float = 0.0
    speed: float = 0.0

    def apply(self, waveform: Waveform, step: int, draw: int) -> Waveform:
        """`waveform` (n,) as step `step` of the epoch hears it: (m,) float32; `draw`: see `EpochPlan.draws`."""
        rng = np.random.default_rng([self.seed, self.epoch, step, draw])
        speed, gain, noise = rng.uniform((-1, -1, 0), 1) * (self.speed, self.gain_db, self.noise)
        if speed and len(waveform) > 1:
            waveform = soxr.resample(waveform, SAMPLE_RATE * (1 + speed), SAMPLE_RATE)
        if noise:
            level = np.float32(noise * np.sqrt(np.mean(np.square(waveform))))
            waveform = waveform + level * rng.standard_normal(len(waveform), dtype=np.float32)
        return waveform * np.float32(10 ** (gain / 20)) if gain else waveform
