"""The spectrogram against the released code's numbers, and that no utterance sees another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_dist.encoders.logmel import LogMel, mel_filters

GOLDEN = np.load(Path(__file__).parents[1] / "data/ssam_mini/expected.npz")
LENGTHS = [12800, 20800, 32000, 59360]


@pytest.mark.parametrize("samples", LENGTHS)
def test_equals_the_released_code(samples):
    audio = torch.from_numpy(GOLDEN[f"n{samples}_pcm16"] / np.float32(32768))
    expected = torch.from_numpy(GOLDEN[f"n{samples}_logmel"])
    torch.testing.assert_close(LogMel()([audio])[0], expected, atol=1e-4, rtol=0)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=5))
def test_utterances_do_not_see_each_other(lengths):
    torch.manual_seed(0)
    audio = [torch.randn(length) for length in lengths]
    logmel = LogMel()
    for waveform, together in zip(audio, logmel(audio), strict=True):
        assert together.shape == (max(len(waveform), 201) // 160 + 1, 80)
        torch.testing.assert_close(together, logmel([waveform])[0], atol=1e-5, rtol=1e-5)


def test_silence_stays_finite():
    assert LogMel()([torch.zeros(16000)])[0].isfinite().all()


def test_bf16_autocast_does_not_touch_it():
    audio = [torch.randn(3000, generator=torch.Generator().manual_seed(0))]
    logmel = LogMel()
    expected = logmel(audio)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logmel(audio)[0], expected)


def test_neighbouring_filters_share_each_frequency():
    filters = mel_filters()
    hz = torch.linspace(0, 8000, 201)
    assert not filters[hz < 50].any()
    inside = filters[(hz > 100) & (hz < 7700)].sum(1)
    torch.testing.assert_close(inside, torch.ones_like(inside))
