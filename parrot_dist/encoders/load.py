"""From the text in a configuration to an encoder with its published weights."""

from __future__ import annotations

from typing import Protocol

from parrot_dist.encoders.base import Encoder
from parrot_dist.encoders.ssam import SsamEncoder
from parrot_dist.encoders.weights import commit_of, deciding_files, digest, hub_folder, read_tensors, ssam_file
from parrot_dist.errors import UserError
from parrot_dist.registry import Registry


class Loader(Protocol):
    """What a family of encoders is registered as."""

    def __call__(self, place: str, /, *, spec: str, readout: str, revision: str | None) -> Encoder:
        """The encoder at `place`, all of it frozen, on the CPU, in float32.

        Args:
            place: a path, an s3:// URL, or what else the family takes.
            spec: "<family>:<place>", for messages and for `Encoder.spec`.
            readout: "released" unless the user asks for another way of reading the encoder out.
            revision: of a Hub repository; None unless the user asks for one.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or a readout or revision that it does not have.
        """


def load_ssam(place: str, /, *, spec: str, readout: str, revision: str | None) -> Encoder:
    """An Audio-Mamba, see `Loader`."""
    file = ssam_file(place, revision)
    encoder = SsamEncoder.from_weights(read_tensors(file), readout, spec, digest([file]))
    encoder.revision = commit_of(place, file)
    return encoder


def load_hf(place: str, /, *, spec: str, readout: str, revision: str | None) -> Encoder:
    """An encoder of transformers, see `Loader`."""
    if readout != "released":
        raise UserError(f"encoder {spec!r}: readout {readout!r} is for Audio-Mamba only")
    from parrot_dist.encoders.attention import load_attention  # transformers takes seconds to import

    folder = hub_folder(place, revision)
    encoder = load_attention(folder, spec, digest(deciding_files(folder)))
    encoder.revision = commit_of(place, folder)
    return encoder


ENCODERS: Registry[Loader] = Registry(
    "encoder",
    "parrot_dist.encoders",
    {"ssam": "parrot_dist.encoders.load:load_ssam", "hf": "parrot_dist.encoders.load:load_hf"},
)


def load_encoder(spec: str, *, readout: str = "released", revision: str | None = None) -> Encoder:
    """The encoder that `spec` names, all of it frozen, on the CPU, in float32.

    Args:
        spec: "ssam:<place>", Audio-Mamba, from a .pth or .safetensors file or a folder with model.safetensors or
            checkpoints/checkpoint-<epoch>.pth (the newest epoch); "hf:<place>", WavLM, HuBERT, wav2vec 2.0,
            UniSpeech-SAT or MMS, from a folder that transformers reads; or a family that an installed package adds.
            A place is a path, an s3:// URL or a Hub id.
        readout: of Audio-Mamba: "released", as the published embeddings, or "frequency".
        revision: of a Hub repository: branch, tag or commit.

    Raises:
        UserError: no such family or checkpoint, or it is damaged or of another model; says where and what.
    """
    family, _, place = spec.partition(":")
    if not place or family not in ENCODERS:
        families = " or ".join(f"{name}:<place>" for name in ENCODERS)
        raise UserError(f"encoder {spec!r}: write {families}; a place is a path, an s3:// URL or a Hub id")
    return ENCODERS[family](place, spec=spec, readout=readout, revision=revision)
