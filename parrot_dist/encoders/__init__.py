"""Self-supervised speech encoders: waveforms at 16 kHz in, frames and utterance embeddings out."""

from __future__ import annotations

from parrot_dist.encoders.base import Activation, Embedded, Embedder, Encoder, Hidden
from parrot_dist.encoders.load import load_encoder

__all__ = ["Activation", "Embedded", "Embedder", "Encoder", "Hidden", "load_encoder"]
