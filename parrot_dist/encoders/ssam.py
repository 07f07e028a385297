"""Audio-Mamba ("SSAM", Yadav & Tan 2024): a Mamba encoder of 2-second pieces of a log-mel spectrogram.

Computes what the authors' released code computes, read-out included, at any size: all shapes come from the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from parrot_dist.encoders.base import Activation, Encoder, Hidden
from parrot_dist.encoders.logmel import MELS, LogMel
from parrot_dist.encoders.scan import selective_scan
from parrot_dist.encoders.weights import misfits
from parrot_dist.errors import UserError

NORM_EPS = 1e-6
PRE_TRAINING = ("pred.", "mask_token")  # parameters of a released checkpoint that only its pre-training used


@dataclass(frozen=True)
class Shape:
    """Sizes of an Audio-Mamba."""

    width: int
    depth: int
    inner: int  # channels of a mixer
    state: int  # numbers that each channel remembers
    dt_rank: int
    taps: int  # of a mixer's convolution in time
    patch_frames: int
    patch_mels: int
    tokens: int  # patches in a piece, without CLS

    @property
    def bands(self) -> int:
        """Patches above each other."""
        return MELS // self.patch_mels

    @property
    def steps(self) -> int:
        """Patches behind each other in one piece."""
        return self.tokens // self.bands

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> Shape:
        """The sizes that a checkpoint's tensors have; KeyError for a tensor that is not there."""
        blocks = [re.match(r"blocks\.(\d+)\.", name) for name in weights]
        state = weights["blocks.0.mixer.A_log"]
        width, _, patch_frames, patch_mels = weights["patch_embed.proj.weight"].shape
        return cls(
            width=width,
            depth=1 + max(int(match[1]) for match in blocks if match),
            inner=state.shape[0],
            state=state.shape[1],
            dt_rank=weights["blocks.0.mixer.dt_proj.weight"].shape[1],
            taps=weights["blocks.0.mixer.conv1d.weight"].shape[-1],
            patch_frames=patch_frames,
            patch_mels=patch_mels,
            tokens=weights["pos_embed"].shape[1] - 1,
        )


class SsamEncoder(Encoder):
    """Audio-Mamba. A row of the residual stream is one 2-second piece: CLS, then patches in time-major order."""

    extractor = "patch_embed."
    pos_embed: Tensor

    def __init__(self, shape: Shape, readout: str, spec: str, digest: str) -> None:
        super().__init__(spec, digest)
        if readout not in ("released", "frequency"):
            raise UserError(f"readout {readout!r}: it is released (as the published embeddings) or frequency")
        self.shape, self.readout = shape, readout
        self.dim = shape.bands * shape.width
        self.depth = shape.depth
        self.logmel = LogMel()
        self.patch_embed = _PatchEmbed(shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("pos_embed", torch.zeros(1, shape.tokens + 1, shape.width))  # fixed sines, never trained
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.encoder_norm = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.unfreeze("none")

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], readout: str, spec: str, digest: str) -> SsamEncoder:
        """The encoder with a checkpoint's tensors.

        Raises:
            UserError: tensors are missing, left over or of another shape than the rest asks for; names them.
        """
        weights = {name: value.float() for name, value in weights.items() if not name.startswith(PRE_TRAINING)}
        try:
            encoder = cls(Shape.of(weights), readout, spec, digest)
        except KeyError as error:
            raise UserError(f"{spec}: not an Audio-Mamba checkpoint; it has no {error.args[0]}") from error
        if wrong := misfits(weights, encoder.state_dict()):
            raise UserError(f"{spec}: not a whole Audio-Mamba checkpoint: {'; '.join(wrong)}")
        encoder.load_state_dict(weights)
        return encoder

    def stem(self, waveforms: list[Tensor]) -> Hidden:
        """Log-mel, 2-second pieces, patches, positions, CLS: (pieces of all utterances, tokens + 1, width)."""
        span = self.shape.steps * self.shape.patch_frames
        spectrograms = self.logmel(waveforms)
        pieces = [F.pad(s, (0, 0, 0, -len(s) % span)).view(-1, span, MELS) for s in spectrograms]
        tokens = self.patch_embed(torch.cat(pieces)).float() + self.pos_embed[:, 1:]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        return Hidden(torch.cat([first, tokens], dim=1), [self._kept(len(s)) for s in spectrograms])

    def block(self, index: int, hidden: Hidden) -> Hidden:
        """Add what block `index` makes of the residual stream to it, in float32."""
        return replace(hidden, x=hidden.x + self.blocks[index](hidden.x))

    def read_out(self, hidden: Hidden) -> Tensor:
        """Fold `bands` tokens into each frame; frames behind an utterance's end are left out.

        "frequency" folds the bands of one moment. "released" reads tokens that lie in (time, frequency) order as if
        they were in (frequency, time) order, which the published embeddings contain.
        """
        shape = self.shape
        tokens = self.encoder_norm(hidden.x)[:, 1:]
        if self.readout == "released":
            tokens = tokens.reshape(-1, shape.bands, shape.steps, shape.width).transpose(1, 2)
        frames = tokens.reshape(-1, self.dim)
        whole = frames.split([pieces * shape.steps for pieces in self._pieces(hidden)])
        kept = [part[:length] for part, length in zip(whole, hidden.lengths, strict=True)]
        return pad_sequence(kept, batch_first=True)

    def split(self, hidden: Hidden) -> list[Tensor]:
        """The pieces (pieces, tokens + 1, width) of each utterance."""
        return list(torch.split(hidden.x, self._pieces(hidden)))

    def join(self, activations: list[Activation]) -> Hidden:
        """All pieces of all utterances."""
        return Hidden(torch.cat([one.x for one in activations]), [one.steps for one in activations])

    def _pieces(self, hidden: Hidden) -> list[int]:
        return [-(-length // self.shape.steps) for length in hidden.lengths]

    def layer_index(self, name: str) -> int:
        """Depth of the parameter `name`, as in `Encoder`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth if name.startswith("encoder_norm.") else 0

    def _kept(self, frames: int) -> int:
        """Steps that an utterance of so many spectrogram frames keeps.

        The released code rounds the dropped steps down and appends a whole piece when nothing needs filling, only
        to drop it again; the piece is left out here.
        """
        span = self.shape.steps * self.shape.patch_frames
        filled = -frames % span
        return (frames + filled) // self.shape.patch_frames - self.shape.steps * filled // span


class _PatchEmbed(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = (shape.patch_frames, shape.patch_mels)
        self.proj = nn.Conv2d(1, shape.width, size, stride=size)

    def forward(self, pieces: Tensor) -> Tensor:
        """(pieces, frames, mels) to (pieces, patches in time-major order, width)."""
        patches: Tensor = self.proj(pieces[:, None])
        return patches.flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.mixer = Mixer(shape)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mixer(self.norm(x))
        return mixed


class Mixer(nn.Module):
    """The Mamba mixer (Gu & Dao 2023, figure 3)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.split = [shape.dt_rank, shape.state, shape.state]
        self.in_proj = nn.Linear(shape.width, 2 * shape.inner, bias=False)
        self.conv1d = nn.Conv1d(shape.inner, shape.inner, shape.taps, groups=shape.inner)
        self.x_proj = nn.Linear(shape.inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(shape.dt_rank, shape.inner)
        self.out_proj = nn.Linear(shape.inner, shape.width, bias=False)
        self.A_log = nn.Parameter(torch.zeros(shape.inner, shape.state))
        self.D = nn.Parameter(torch.ones(shape.inner))

    def forward(self, x: Tensor) -> Tensor:
        """(R, L, width) to (R, L, width)."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        past = F.pad(x.transpose(1, 2), (self.conv1d.kernel_size[0] - 1, 0))
        x = F.silu(self.conv1d(past)).transpose(1, 2)
        dt, b, c = self.x_proj(x).split(self.split, dim=-1)
        dt = F.linear(dt, self.dt_proj.weight)  # its bias is added in float32, in the scan
        y = selective_scan(x, dt, -self.A_log.exp(), b, c, self.D, gate, self.dt_proj.bias)
        mixed: Tensor = self.out_proj(y)
        return mixed
