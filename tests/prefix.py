"""What holds for the frozen prefix of every encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from parrot_dist.encoders import Encoder

BOUNDARIES = ["none", "last:1", "last:2", "last:3"]


def check_prefix(encoder: Encoder, audio: list[Tensor], unfreeze: str) -> None:
    """Embedding and gradients from stored activations, made in other batches, are those from the audio."""
    encoder.unfreeze(unfreeze)
    encoder.train()
    stored = [activation for waveform in audio for activation in encoder.prefix([waveform])]
    direct, resumed = encoder(audio), encoder(stored)
    assert encoder.has_prefix
    torch.testing.assert_close(resumed, direct, atol=1e-5, rtol=1e-4)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if trained:
        ours, theirs = (torch.autograd.grad(out.square().sum(), trained) for out in (resumed, direct))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
