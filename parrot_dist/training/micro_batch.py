"""Encoders trained on more rows than fit into memory at once: gradient caching (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from parrot_dist.encoders import Activation, Embedder


def embed_in_parts(embedder: Embedder, inputs: Sequence[Tensor | Activation], size: int) -> Tensor:
    """Embeddings (b, dim), or frames, of `inputs`; activations are held of `size` of them at a time, of all if it is 0.

    A part keeps nothing but its embeddings. When the loss of the whole global batch has reached these, the backward
    pass computes one part after another again, last to first, and adds up its gradients: the embeddings, the plan over
    them and the gradients are those of the undivided batch. It is one backward pass, so DDP reduces once. An encoder
    that is frozen, or not in training, keeps nothing anyway and takes all inputs at once.
    """
    divided = 0 < size < len(inputs) and torch.is_grad_enabled()
    if not divided or not any(parameter.requires_grad for parameter in embedder.parameters()):
        whole: Tensor = embedder(inputs)
        return whole
    parts = [_recomputed(embedder, inputs[first : first + size]) for first in range(0, len(inputs), size)]
    return pad_sequence([row for part in parts for row in part], batch_first=True)  # of frames, the longest differ


def _recomputed(embedder: Embedder, inputs: Sequence[Tensor | Activation]) -> Tensor:
    # Autocast would share its copy of the weights in half precision, and sum the gradients of all parts in that too.
    torch.clear_autocast_cache()
    # No encoder draws random numbers, so there is no state of them to bring back.
    embeddings: Tensor = checkpoint(embedder, inputs, use_reentrant=False, preserve_rng_state=False)
    return embeddings
