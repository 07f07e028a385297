"""What every speech encoder has in common: its parts in order, freezing, pooling and the checks on its input.

An encoder is a stem (feature extractor, projection, positions), a list of equal blocks and a read-out. Everything
below the lowest trainable part is a pure function of the sample and runs without a graph, in eval mode. Dropout,
layer drop and SpecAugment are off in every encoder, trainable or not: random masks drawn per process would make the
gradient depend on how a global batch is spread over the ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from parrot_dist.encoders.logmel import SAMPLE_RATE
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


@dataclass(frozen=True)
class Activation:
    """What the frozen prefix of an encoder made of one utterance.

    Attributes:
        x: float32 of one to three axes: an embedding (dim,) or its frames, or the utterance's part of the residual
            stream.
        steps: frames of the utterance that the read-out keeps; 0 with an embedding.
    """

    x: Tensor
    steps: int


class Embedder(nn.Module, ABC):
    """A branch of the network: utterances, in whatever form they come to it, to embeddings.

    Attributes:
        dim: width of the embedding.
        keeps_frames: frames instead of their mean, wherever embeddings (B, dim) are said: (B, T, dim + 1), zero past an
            utterance's end; the last column is 1 for a frame.
    """

    dim: int
    keeps_frames: bool = False

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor | Activation]) -> Tensor:
        """Embeddings (B, dim) float32 of B utterances."""

    @abstractmethod
    def silence(self, device: torch.device) -> Tensor | Activation:
        """An input that stands for nothing, for a pass whose result is thrown away."""


class Embedded(Embedder):
    """The branch of a frozen encoder whose embeddings are all there already: `Activation`s in, their vectors out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, inputs: Sequence[Tensor | Activation]) -> Tensor:
        return torch.stack([item.x for item in inputs if isinstance(item, Activation)])

    def silence(self, device: torch.device) -> Activation:
        return Activation(torch.zeros(self.dim, device=device), 0)


class Encoder(Embedder):
    """A speech encoder. Parameter names are those of the published checkpoints.

    Attributes:
        spec: where the weights came from, as the user wrote it.
        digest: SHA-256 of the weight files, in hexadecimal.
        revision: the commit on the Hugging Face Hub that they are of; empty if they are from elsewhere.
        depth: how many equal blocks it has.
        recompute: keep no activations of trainable blocks for the backward pass, which computes them again (Chen et al.
            2016, arXiv 1604.06174): memory for a third more time, and the same gradients, since nothing is random.
    """

    spec: str
    digest: str
    revision: str = ""
    depth: int
    recompute: bool = False
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
        hidden = self._run_blocks(hidden, 0, self.depth)
        with _graph_if(self._lowest <= self.depth):
            frames = self.read_out(hidden).float()
        return frames, torch.tensor(hidden.lengths, device=device)

    def embed(self, waveforms: list[Tensor]) -> Tensor:
        """Embeddings (B, dim) float32: the mean of each utterance's frames. Arguments and errors as for `frames`."""
        return self._pool(*self.frames(waveforms))

    def _pool(self, frames: Tensor, lengths: Tensor) -> Tensor:
        if not self.keeps_frames:
            return frames.sum(1) / lengths[:, None]
        there = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
        return torch.cat([frames, there[..., None].to(frames)], 2)

    def forward(self, inputs: Sequence[Tensor | Activation]) -> Tensor:
        """Embeddings (B, dim) float32 of waveforms, see `embed`, or of what `prefix` made of them."""
        activations = [item for item in inputs if isinstance(item, Activation)]
        return self._complete(activations) if activations else self.embed([x for x in inputs if isinstance(x, Tensor)])

    def silence(self, device: torch.device) -> Tensor:
        """A second of it."""
        return torch.zeros(SAMPLE_RATE, device=device)

    @property
    def has_prefix(self) -> bool:
        """Whether anything below the lowest trainable part is frozen."""
        return self._lowest > 0

    @property
    def prefix_name(self) -> str:
        """Which part of the encoder `prefix` runs: with the weights' digest it says what an activation is."""
        if self._lowest <= self.depth:
            return f"{self._lowest - 1} blocks"
        return f"{'frames' if self.keeps_frames else 'embedding'} {getattr(self, 'readout', '')}"

    @torch.no_grad()
    def prefix(self, waveforms: list[Tensor]) -> list[Activation]:
        """What the frozen prefix makes of each utterance, on the CPU: all that training needs to know of it.

        Raises:
            ValueError: as for `frames`.
        """
        if self._lowest > self.depth:
            rows = [row[row[:, -1] > 0] if self.keeps_frames else row for row in self.embed(waveforms)]
            return [Activation(row.cpu(), 0) for row in rows]
        hidden = self.stem(_checked(waveforms, next(self.parameters()).device))
        hidden = self._run_blocks(hidden, 0, self._lowest - 1)
        return [Activation(x.cpu(), steps) for x, steps in zip(self.split(hidden), hidden.lengths, strict=True)]

    def _complete(self, activations: list[Activation]) -> Tensor:
        """Embeddings (B, dim) from where `prefix` stopped."""
        if self._lowest > self.depth:
            return pad_sequence([activation.x for activation in activations], batch_first=True)
        hidden = self._run_blocks(self.join(activations), self._lowest - 1, self.depth)
        return self._pool(self.read_out(hidden).float(), torch.tensor(hidden.lengths, device=hidden.x.device))

    def files(self) -> dict[str, bytes]:
        """Name -> content of a folder from which the loader of this family makes this encoder again, as it is now."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        return {"model.safetensors": save(tensors)}

    def _run_blocks(self, hidden: Hidden, first: int, end: int) -> Hidden:
        """Blocks `first` to `end` - 1, with a graph from the lowest trainable one on."""
        for index in range(first, end):
            with _graph_if(self._lowest <= index + 1):
                if self.recompute and torch.is_grad_enabled():
                    hidden = checkpoint(self.block, index, hidden, use_reentrant=False, preserve_rng_state=False)
                else:
                    hidden = self.block(index, hidden)
        return hidden

    @abstractmethod
    def split(self, hidden: Hidden) -> list[Tensor]:
        """Each utterance's own part of the residual stream."""

    @abstractmethod
    def join(self, activations: list[Activation]) -> Hidden:
        """The batch whose parts are `activations`: the inverse of `split`."""

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
        parts = [module for module in self.modules() if module is not self]
        self._frozen = [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of what is trained; frozen modules stay in eval mode."""
        super().train(mode)
        self.training = mode and self._lowest <= self.depth
        for module in self._frozen:
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
    if not waveforms:
        raise ValueError("a batch of no waveforms has no embeddings")
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
