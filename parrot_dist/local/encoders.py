"""`python -m parrot_dist.local.encoders URL [--all]`: small encoders of random weights, in the formats of real ones.

They let the whole job run without a download, by the code that loads published weights. The weights are random, but
drawn so that different sounds get different embeddings, as a trained encoder's do: the first layer of an attention
encoder is a bank of band-pass filters instead of white noise, and what follows a stem starts as a rotation.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from parrot_dist import storage
from parrot_dist.encoders.logmel import SAMPLE_RATE
from parrot_dist.encoders.ssam import Mixer, Shape, SsamEncoder
from parrot_dist.errors import exits_cleanly

SSAM = Shape(width=64, depth=2, inner=128, state=8, dt_rank=4, taps=4, patch_frames=4, patch_mels=16, tokens=250)
EPOCH = 99  # of the released checkpoints
ATTENTION = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": [96, 96, 96, 96],
    "conv_kernel": [400, 3, 3, 2],  # the first sees 25 ms: enough to tell the harmonics of a low voice apart
    "conv_stride": [40, 2, 2, 2],
    "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "layer",  # the group norm would level out, channel by channel, the spectrum of an utterance
    "do_stable_layer_norm": True,
}
HUBERT = ("hubert", 128)
MAMBAS = {"A(T)": 16, "A(S)": 32, "A(B)": 64}
ATTENTIONS = {
    "W": ("wavlm", 64),
    "U": ("unispeech-sat", 64),
    "W2": ("wav2vec2", 64),
    "H": HUBERT,
    "M": ("wav2vec2", 96),
}
"""The encoders of the paper's tables by the names they have there, with the widths they have here."""


@exits_cleanly
def main() -> int:
    """Parse the command line, write the encoders, say what to give `encoders.*.source`."""
    parser = argparse.ArgumentParser(prog="python -m parrot_dist.local.encoders", description=__doc__)
    parser.add_argument("url", help="folder or s3:// prefix to write to")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    parser.add_argument("--all", action="store_true", help="all eight of the paper's tables, not one for each branch")
    settings = parser.parse_args()
    write = write_all if settings.all else write_random_encoders
    for name, spec in write(settings.url, settings.seed).items():
        print(f"{name}: {spec}")
    return 0


def write_random_encoders(url: str, seed: int = 0) -> dict[str, str]:
    """Write an Audio-Mamba to `url`/ssam and a HuBERT to `url`/hubert; one seed gives the same bytes each time.

    Returns what to give `load_encoder`, by branch: {"mamba": "ssam:...", "attention": "hf:..."}.
    """
    with _seeded(seed):
        files = _ssam_folder("ssam", SSAM) | _attention_folder("hubert", *HUBERT)
    _write(url, files)
    return {"mamba": f"ssam:{storage.join(url, 'ssam')}", "attention": f"hf:{storage.join(url, 'hubert')}"}


def write_all(url: str, seed: int = 0) -> dict[str, str]:
    """Write the eight encoders of the paper's tables, in small; name there -> what to give `load_encoder`."""
    files: dict[str, bytes] = {}
    specs = {}
    with _seeded(seed):
        for name, width in MAMBAS.items():
            files |= _ssam_folder(name, replace(SSAM, width=width, inner=2 * width))
            specs[name] = f"ssam:{storage.join(url, name)}"
        for name, (family, width) in ATTENTIONS.items():
            files |= _attention_folder(name, family, width)
            specs[name] = f"hf:{storage.join(url, name)}"
    _write(url, files)
    return specs


def _write(url: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        storage.write_bytes(storage.join(url, name), content)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Orthogonal matrices come out differently, in their last bits, on another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _ssam_folder(name: str, shape: Shape) -> dict[str, bytes]:
    """A checkpoint in the released format, drawn as Mamba draws its weights (Gu & Dao 2023, section 3.6)."""
    encoder = SsamEncoder(shape, "released", "random", "")
    encoder.pos_embed.copy_(_positions(shape))
    nn.init.orthogonal_(encoder.patch_embed.proj.weight.view(shape.width, -1))
    nn.init.normal_(encoder.cls_token, std=0.02)
    for mixer in (module for module in encoder.modules() if isinstance(module, Mixer)):
        step = torch.empty(shape.inner).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        mixer.dt_proj.bias.data = step + torch.log(-torch.expm1(-step))  # softplus gives `step` back
        mixer.dt_proj.weight.data.uniform_(-1, 1).mul_(shape.dt_rank**-0.5)
        mixer.A_log.data = torch.arange(1.0, shape.state + 1).log().repeat(shape.inner, 1)
    weights = encoder.state_dict() | _pre_training(shape)
    file = io.BytesIO()
    torch.save({"model": weights, "epoch": EPOCH}, file)
    return {f"{name}/checkpoints/checkpoint-{EPOCH}.pth": file.getvalue()}


def _pre_training(shape: Shape) -> dict[str, Tensor]:
    """What a released checkpoint holds besides the encoder."""
    patch = shape.patch_frames * shape.patch_mels
    hidden, out = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, patch)
    pred = nn.Sequential(hidden, nn.GELU(), out).state_dict(prefix="pred.")
    return {"mask_token": torch.zeros(1, 1, shape.width), **pred}


def _positions(shape: Shape) -> Tensor:
    """2-D sines and cosines (1, tokens + 1, width): half the width for time, half for frequency, none for CLS."""
    time, band = torch.meshgrid(torch.arange(shape.steps), torch.arange(shape.bands), indexing="ij")
    rates = 10000.0 ** -torch.linspace(0, 1, shape.width // 4 + 1)[:-1]
    angles = [axis.flatten()[:, None] * rates for axis in (time, band)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, shape.width), table])[None]


def _attention_folder(name: str, family: str, width: int) -> dict[str, bytes]:
    """Content of the files of the Hugging Face folder `name` of a model of this family."""
    from transformers import AutoConfig, AutoModel  # takes seconds
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModel.from_config(AutoConfig.for_model(family, hidden_size=width, **ATTENTION))
    first, *others = (layer.conv.weight for layer in model.feature_extractor.conv_layers)
    first.data = _band_passes(*first.shape[::2])
    for weight in others:
        weight.data = nn.init.orthogonal_(torch.empty(weight.shape[:2]))[..., None].expand_as(weight).contiguous()
    nn.init.orthogonal_(model.feature_projection.projection.weight)
    preprocessor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": SAMPLE_RATE}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files = {f"{name}/{file.name}": file.read_bytes() for file in sorted(Path(folder).iterdir())}
    return files | {f"{name}/preprocessor_config.json": json.dumps(preprocessor | {"do_normalize": True}).encode()}


def _band_passes(channels: int, taps: int) -> Tensor:
    """Filters (channels, 1, taps): windowed cosines of random phase, centres spread evenly in pitch, 80 to 7000 Hz."""
    centres = 80.0 * (7000.0 / 80.0) ** torch.linspace(0, 1, channels)[:, None]
    time = torch.arange(taps) / SAMPLE_RATE
    waves = torch.cos(2 * math.pi * (centres * time + torch.rand(channels, 1)))
    filters = waves * torch.hann_window(taps)
    return nn.functional.normalize(filters)[:, None]


if __name__ == "__main__":
    raise SystemExit(main())
