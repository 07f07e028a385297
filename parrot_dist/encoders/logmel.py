"""The spectrogram that Audio-Mamba was trained on, in plain torch, so that it runs where the encoder runs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_RATE = 16000
WINDOW = 400
HOP = 160
MELS = 80
LOW_HZ, HIGH_HZ = 50.0, 8000.0
SHORTEST = WINDOW // 2 + 1
"""Samples below which reflection at the borders is undefined; shorter utterances get zeros behind them."""


class LogMel(nn.Module):
    """Log-mel spectrograms as the released Audio-Mamba code computes them.

    Hann window of 400 samples every 160, centred with reflection, power, 80 HTK mels from 50 to 8000 Hz,
    log(x + eps of float32), then per utterance minus the mean, over the unbiased standard deviation + 1e-8, both
    over time and mels together.
    """

    window: Tensor
    mels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("mels", mel_filters(), persistent=False)

    def forward(self, waveforms: list[Tensor]) -> list[Tensor]:
        """Waveforms at 16 kHz, one axis each, to (samples // 160 + 1, 80) each, float32.

        The frames of all utterances lie in one tensor without padding, so no utterance can see another.
        """
        with torch.autocast(self.window.device.type, enabled=False):
            pieces = [_frames(waveform) for waveform in waveforms]
            spectrum = torch.fft.rfft(torch.cat(pieces) * self.window).abs().square()
            logs = (spectrum @ self.mels + torch.finfo(torch.float32).eps).log()
            return [_normalised(part) for part in logs.split([len(piece) for piece in pieces])]


def mel_filters() -> Tensor:
    """Triangular HTK filters (201 bins, 80 mels), peak 1."""
    bins = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    low, high = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (LOW_HZ, HIGH_HZ))
    corners = 700.0 * (10.0 ** (torch.linspace(low, high, MELS + 2) / 2595.0) - 1.0)
    widths = corners.diff()
    distance = corners[None, :] - bins[:, None]
    rising = -distance[:, :-2] / widths[:-1]
    falling = distance[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp_min(0.0)


def _frames(waveform: Tensor) -> Tensor:
    """(samples,) to (frames, 400)."""
    filled = F.pad(waveform, (0, max(0, SHORTEST - len(waveform))))
    return F.pad(filled[None], (WINDOW // 2, WINDOW // 2), mode="reflect")[0].unfold(0, WINDOW, HOP)


def _normalised(logs: Tensor) -> Tensor:
    return (logs - logs.mean()) / (logs.std() + 1e-8)
