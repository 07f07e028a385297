"""What every speech encoder has in common: its parts in order, freezing, pooling and the checks on its input.

An encoder is a stem (feature extractor, projection, positions), a list of equal blocks and a read-out. Everything
below the lowest trainable part is a pure function of the sample and runs without a graph, in eval mode. Dropout,
layer drop and SpecAugment are off in every encoder, trainable or not: random masks drawn per process would make the
gradient depend on how a global batch is spread over the ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from parrot_dist.errors import UserError


@dataclass(frozen=True)
class Hidden:
    """What flows through the blocks of an encoder."""

    x: Tensor
    """The residual stream, float32; its first axis is over utterances or over pieces of utterances."""
    lengths: list[int]
    """Frames of each utterance that the read-out keeps; on the host, so that nothing waits for the device."""
    mask: Tensor | None = None
    """What attention must not see past an utterance's end; None where rows are full."""
    bias: Tensor | None = None
    """Relative position bias that the blocks share (WavLM)."""


class Encoder(nn.Module, ABC):
    """A speech encoder. Parameter names are those of the published checkpoints.

    Attributes:
        dim: width of the embedding.
        spec: where the weights came from, as the user wrote it.
        digest: SHA-256 of the weight files, in hexadecimal.
        depth: how many equal blocks it has.
    """

    dim: int
    spec: str
    digest: str
    depth: int
    extractor: str
    """Prefix of the parameters of the feature extractor, which stays frozen unless it is named."""

    def __init__(self, spec: str, digest: str) -> None:
        super().__init__()
        self.spec = spec
        self.digest = digest

    @abstractmethod
    def stem(self, waveforms: list[Tensor]) -> Hidden:
        """Everything below the first block."""

    @abstractmethod
    def block(self, index: int, hidden: Hidden) -> Hidden:
        """Run block `index`, counted from 0."""

    @abstractmethod
    def read_out(self, hidden: Hidden) -> Tensor:
        """Everything above the last block: frames (B, T, dim), whose steps past an utterance's length are zero."""

    @abstractmethod
    def layer_index(self, name: str) -> int:
        """Depth of the parameter `name`: 0 for the stem, 1 for the first block; a final norm counts with the last."""

    def frames(self, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Encode utterances, each as if it were alone.

        Args:
            waveforms: B tensors of one axis, mono, 16 kHz, floating point; taken as they are.

        Returns:
            Frames (B, T, dim) float32, zero past each utterance's length, and the lengths (B,) int64, on the device
            of the parameters.

        Raises:
            ValueError: a waveform is empty, not one axis of floats, or not finite; names its position in the batch.
        """
        device = next(self.parameters()).device
        audio = _checked(waveforms, device)
        with _graph_if(self._lowest <= 0):
            hidden = self.stem(audio)
        for index in range(self.depth):
            with _graph_if(self._lowest <= index + 1):
                hidden = self.block(index, hidden)
        with _graph_if(self._lowest <= self.depth):
            frames = self.read_out(hidden).float()
        return frames, torch.tensor(hidden.lengths, device=device)

    def embed(self, waveforms: list[Tensor]) -> Tensor:
        """Embeddings (B, dim) float32: the mean of each utterance's frames. Arguments and errors as for `frames`."""
        frames, lengths = self.frames(waveforms)
        return frames.sum(1) / lengths[:, None]

    def forward(self, waveforms: list[Tensor]) -> Tensor:
        """`embed`, under the name that a wrapping module calls."""
        return self.embed(waveforms)

    def unfreeze(self, what: str) -> None:
        """Say which parameters are trained; all others are frozen.

        Args:
            what: "none"; "all", which leaves the feature extractor (convolutions, patch embedding) frozen;
                "last:N", the last N blocks and the norm after them; or patterns of parameter names separated by
                commas, such as "blocks.11.*,encoder_norm.*".

        Raises:
            UserError: there are fewer than N blocks, or a pattern matches no parameter.
        """
        chosen = self._chosen(what)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        self._lowest = min((self.layer_index(name) for name in chosen), default=self.depth + 1)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of what is trained; frozen modules stay in eval mode."""
        super().train(mode)
        for module in self.modules():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.training = False
        return self

    def _chosen(self, what: str) -> set[str]:
        names = [name for name, _ in self.named_parameters()]
        if what == "none":
            return set()
        if what == "all":
            return {name for name in names if not name.startswith(self.extractor)}
        if what.startswith("last:"):
            lowest = self.depth + 1 - self._last(what)
            return {name for name in names if self.layer_index(name) >= lowest}
        return set().union(*(self._matching(pattern.strip(), names) for pattern in what.split(",")))

    def _last(self, what: str) -> int:
        count = what.removeprefix("last:")
        if not count.isdecimal() or not 1 <= int(count) <= self.depth:
            raise UserError(f"unfreeze {what!r}: {self.spec} has {self.depth} blocks; N goes from 1 to that")
        return int(count)

    def _matching(self, pattern: str, names: Iterable[str]) -> set[str]:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise UserError(
                f"unfreeze {pattern!r}: neither none, all nor last:N, and no parameter of {self.spec} has such a name; "
                f"it has {self.depth} blocks, and names such as {next(reversed(list(names)))}"
            )
        return found


def _checked(waveforms: list[Tensor], device: torch.device) -> list[Tensor]:
    """The waveforms in float32 on `device`, or a ValueError that names the first bad one."""
    for position, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or not waveform.is_floating_point() or not len(waveform):
            raise ValueError(
                f"waveform {position} of the batch has shape {tuple(waveform.shape)} and type {waveform.dtype}; "
                "one axis of at least one floating-point sample is needed"
            )
    audio = [waveform.to(device, torch.float32, non_blocking=True) for waveform in waveforms]
    finite = torch.stack([waveform.isfinite().all() for waveform in audio]).tolist()
    if not all(finite):
        raise ValueError(f"waveform {finite.index(False)} of the batch has samples that are not finite (NaN or Inf)")
    return audio


def _graph_if(trainable: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(trainable and torch.is_grad_enabled())
