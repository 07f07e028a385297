"""Dropout whose mask belongs to the sample: the same on any rank, in any batch, after any resume."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64: torch multiplies modulo 2^64 but has no unsigned product."""
    return value - (1 << 64) if value >> 63 else value


# The constants of SplitMix64 (Steele, Lea & Flood 2014).
GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's shift of an int64 is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 in which every input bit moves every output bit."""
    z = (z ^ _shift(z, 30)) * MULTIPLIERS[0]
    z = (z ^ _shift(z, 27)) * MULTIPLIERS[1]
    return z ^ _shift(z, 31)


def row_keys(seed: int, step: int, samples: Tensor) -> Tensor:
    """One key for each sample of a step: (B,) int64 from the run's seed, the global step and int64 sample ids (B,)."""
    return mix(mix(mix(torch.full_like(samples, seed)) + step) + samples)


def uniform(keys: Tensor, units: int) -> Tensor:
    """Numbers in [0, 1), float32 (B, units), each a pure function of (key, unit); keys int64 (B,)."""
    counters = torch.arange(units, device=keys.device) * GOLDEN_GAMMA
    # 24 bits: the most that float32 holds exactly, so that every device compares the same number with the rate.
    return _shift(mix(mix(keys)[:, None] + counters), 40).to(torch.float32) * 2.0**-24


def keyed_dropout(x: Tensor, rate: float, keys: Tensor) -> Tensor:
    """Inverted dropout of x (B, units) by the keys (B,) of its rows: zero at `rate`, else divided by 1 - rate."""
    keep = uniform(keys, x.shape[1]) >= rate
    return x * keep / (1 - rate)
