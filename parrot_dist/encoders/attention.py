"""WavLM, HuBERT, wav2vec 2.0, UniSpeech-SAT and MMS, from transformers, made independent of the batch.

The parts of the transformers model are run one by one instead of its `forward`, for three reasons: a group norm in
the first convolution sees the padding there (16 to 38 % of the embedding); the frozen prefix can be cut off at any
block; and layer drop and SpecAugment cannot switch themselves on.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.utils.logging import disable_progress_bar

from parrot_dist.encoders.base import Activation, Encoder, Hidden
from parrot_dist.encoders.logmel import SAMPLE_RATE
from parrot_dist.errors import UserError

MODEL_TYPES = ("wavlm", "hubert", "wav2vec2", "unispeech-sat")  # MMS is a wav2vec2
PARTS = ("feature_extractor.", "feature_projection.", "encoder.")


def load_attention(folder: Path, spec: str, digest: str) -> AttentionEncoder:
    """The encoder that transformers reads from a local folder.

    Raises:
        UserError: it is a model of another kind, or parameters are missing, left over or misshapen; names them.
    """
    kind = _json(folder / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{spec}: a model of type {kind!r}; the supported types are {', '.join(MODEL_TYPES)}")
    disable_progress_bar()  # every rank would draw one
    talk = logging.getLogger("transformers.modeling_utils")
    talk.disabled = True  # what its report of missing and unknown parameters says is judged below
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            config=_without_chance(AutoConfig.from_pretrained(folder)),
            attn_implementation="eager" if kind == "wavlm" else "sdpa",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, all at once
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{spec}: transformers cannot read it: {str(error).splitlines()[0]}") from error
    finally:
        talk.disabled = False
    for parameter in model.parameters():  # in a mapped file they begin anywhere, and MKL's last bits depend on that
        parameter.data = parameter.data.clone()
    _refuse_misfits(report, spec)
    if kind == "wavlm":
        for layer in model.encoder.layers:
            layer.attention.__class__ = _WavLMAttention
    return AttentionEncoder(model, _normalises(folder, spec), spec, digest)


class AttentionEncoder(Encoder):
    """A transformers speech encoder; the embedding is the mean over time of its last hidden layer.

    Utterances shorter than the receptive field of the convolutions (400 samples in the published models) get zeros
    behind them up to that length, and then have one frame.
    """

    extractor = "feature_extractor."

    def __init__(self, model: Any, normalise: bool, spec: str, digest: str) -> None:
        super().__init__(spec, digest)
        self.dim = model.config.hidden_size
        self.depth = model.config.num_hidden_layers
        self.config = model.config
        self.normalise = normalise
        self.stable_norm = bool(model.config.do_stable_layer_norm)
        self.kernels = list(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.encoder = model.encoder
        self.unfreeze("none")

    def stem(self, waveforms: list[Tensor]) -> Hidden:
        """Convolutions, projection and positions: (B, T, width), with a mask (B, 1, 1, T) where lengths differ."""
        shortest = self._receptive_field()
        if self.normalise:
            waveforms = [_standardised(waveform) for waveform in waveforms]
        waveforms = [F.pad(waveform, (0, max(0, shortest - len(waveform)))) for waveform in waveforms]
        features, lengths = self._features(waveforms)
        projected = self.feature_projection(features.transpose(1, 2))
        x = (projected[0] if isinstance(projected, tuple) else projected).float()
        mask = _mask(lengths, x)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        x = x + self._positions(x, mask)
        if not self.stable_norm:
            x = self.encoder.layer_norm(x)
        return Hidden(x, lengths, mask=None if mask is None else mask[:, None, None])

    def block(self, index: int, hidden: Hidden) -> Hidden:
        """Run one transformer layer; residuals and norms are float32."""
        layer = self.encoder.layers[index]
        if isinstance(layer.attention, WavLMAttention):
            x, bias = layer(hidden.x, attention_mask=hidden.mask, position_bias=hidden.bias, index=index)
            return replace(hidden, x=x, bias=bias)
        return replace(hidden, x=layer(hidden.x, attention_mask=hidden.mask))

    def read_out(self, hidden: Hidden) -> Tensor:
        """The last hidden layer (B, T, width)."""
        x = self.encoder.layer_norm(hidden.x) if self.stable_norm else hidden.x
        return x if hidden.mask is None else x.masked_fill(~hidden.mask[:, 0, 0, :, None], 0.0)

    def split(self, hidden: Hidden) -> list[Tensor]:
        """The frames (T, width) of each utterance."""
        return [x[:length] for x, length in zip(hidden.x, hidden.lengths, strict=True)]

    def join(self, activations: list[Activation]) -> Hidden:
        """Frames padded to one length again; WavLM's position bias, which its first layer makes, is made again."""
        x = pad_sequence([one.x for one in activations], batch_first=True)
        lengths = [len(one.x) for one in activations]
        mask = _mask(lengths, x)
        hidden = Hidden(x, lengths, mask=None if mask is None else mask[:, None, None])
        first = self.encoder.layers[0].attention
        if isinstance(first, WavLMAttention):
            bias = first.compute_bias(x.shape[1], x.shape[1])
            bias = bias[None].expand(len(x), -1, -1, -1).reshape(-1, x.shape[1], x.shape[1])
            return replace(hidden, bias=bias)
        return hidden

    def layer_index(self, name: str) -> int:
        """Depth of the parameter `name`, as in `Encoder`."""
        if name.startswith("encoder.layers."):
            return int(name.split(".")[2]) + 1
        return self.depth if self.stable_norm and name.startswith("encoder.layer_norm.") else 0

    def files(self) -> dict[str, bytes]:
        """A folder that transformers reads, as in `Encoder`."""
        preprocessor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": self.normalise,
            "sampling_rate": SAMPLE_RATE,
        }
        return super().files() | {
            "config.json": self.config.to_json_string(use_diff=False).encode(),
            "preprocessor_config.json": json.dumps(preprocessor, indent=1).encode(),
        }

    def _receptive_field(self) -> int:
        samples = 1
        for kernel, stride in reversed(self.kernels):
            samples = (samples - 1) * stride + kernel
        return samples

    def _features(self, waveforms: list[Tensor]) -> tuple[Tensor, list[int]]:
        """The convolutions over all utterances at once: (B, channels, T), and the frames that saw no padding."""
        lengths = [len(waveform) for waveform in waveforms]
        x = pad_sequence(waveforms, batch_first=True)[:, None]
        for layer, (kernel, stride) in zip(self.feature_extractor.conv_layers, self.kernels, strict=True):
            lengths = [(length - kernel) // stride + 1 for length in lengths]
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                x = layer.activation(_group_norm(layer.layer_norm, layer.conv(x).float(), lengths))
            else:
                x = layer(x)
        return x, lengths

    def _positions(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The convolutional position embedding of x (B, T, width), whose steps past the end are zero."""
        embed = self.encoder.pos_conv_embed
        x = x.transpose(1, 2)
        if getattr(embed, "batch_norm", None) is not None:
            x = embed.batch_norm(x)
            x = x if mask is None else x.masked_fill(~mask[:, None], 0.0)
        positions: Tensor = embed.activation(embed.padding(embed.conv(x)))
        return positions.transpose(1, 2)


class _WavLMAttention(WavLMAttention):  # type: ignore[misc]
    """WavLM's gated relative position bias through PyTorch's fused attention; upstream has the eager one only."""

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """hidden_states (B, T, width), mask (B, 1, 1, T) or None, bias (B * heads, T, T) to (B, T, width)."""
        shape = (len(hidden_states), -1, self.num_heads, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.view(len(hidden_states), self.num_heads, *gated_position_bias.shape[1:])
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask, -torch.inf)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def _without_chance(config: Any) -> Any:
    """The configuration with every dropout 0 and without the adapter that would shorten the frames."""
    for name in config.to_dict():
        if name.endswith("dropout"):
            setattr(config, name, 0.0)
    config.add_adapter = False
    return config


def _mask(lengths: list[int], x: Tensor) -> Tensor | None:
    """Which frames of x (B, T, width) are an utterance's own, (B, T); None if all are."""
    if min(lengths) == x.shape[1]:
        return None
    return torch.arange(x.shape[1], device=x.device) < torch.tensor(lengths, device=x.device)[:, None]


def _group_norm(norm: nn.GroupNorm, x: Tensor, lengths: list[int]) -> Tensor:
    """`norm` over the valid frames of each row of x (B, channels, T); zeros behind them."""
    if min(lengths) == x.shape[2]:
        whole: Tensor = norm(x)
        return whole
    rows: list[Tensor] = [norm(x[row : row + 1, :, :length]) for row, length in enumerate(lengths)]
    return torch.cat([F.pad(row, (0, x.shape[2] - row.shape[2])) for row in rows])


def _standardised(waveform: Tensor) -> Tensor:
    """Zero mean and unit variance, as the Wav2Vec2 feature extractor computes it."""
    return (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()


def _normalises(folder: Path, spec: str) -> bool:
    """What the preprocessor configuration says of `do_normalize`; transformers' default, true, where there is none."""
    file = folder / "preprocessor_config.json"
    settings = _json(file) if file.is_file() else {}
    if settings.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise UserError(f"{spec}: made for {settings['sampling_rate']} Hz; this project works at {SAMPLE_RATE} Hz")
    return bool(settings.get("do_normalize", True))


def _refuse_misfits(report: dict[str, Any], spec: str) -> None:
    """Heads above the encoder may be missing or left over; the encoder's own parameters may not."""
    wrong = [f"no {name}" for name in sorted(report["missing_keys"]) if name.startswith(PARTS)]
    wrong += [f"unknown {name}" for name in sorted(report["unexpected_keys"]) if name.startswith(PARTS)]
    wrong += [f"{name} is {tuple(found)}, not {tuple(own)}" for name, found, own in sorted(report["mismatched_keys"])]
    if wrong:
        raise UserError(f"{spec}: the weights do not fit the configuration: {'; '.join(wrong)}")


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    return content
