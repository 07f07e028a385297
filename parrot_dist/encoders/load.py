"""From the text in a configuration to an encoder with its published weights."""

from __future__ import annotations

from parrot_dist.encoders.base import Encoder
from parrot_dist.encoders.ssam import SsamEncoder
from parrot_dist.encoders.weights import deciding_files, digest, hub_folder, read_tensors, ssam_file
from parrot_dist.errors import UserError


def load_encoder(spec: str, *, readout: str = "released", revision: str | None = None) -> Encoder:
    """The encoder that `spec` names, all of it frozen, on the CPU, in float32.

    Args:
        spec: "ssam:<place>", Audio-Mamba, from a .pth or .safetensors file or a folder with
            checkpoints/checkpoint-<epoch>.pth (the newest epoch); or "hf:<place>", WavLM, HuBERT, wav2vec 2.0,
            UniSpeech-SAT or MMS, from a folder that transformers reads. A place is a path, an s3:// URL or a Hub id.
        readout: of Audio-Mamba: "released", as the published embeddings, or "frequency".
        revision: of a Hub repository: branch, tag or commit.

    Raises:
        UserError: there is no such checkpoint, or it is damaged or of another model; says where and what.
    """
    family, _, place = spec.partition(":")
    if not place or family not in ("ssam", "hf"):
        raise UserError(f"encoder {spec!r}: write ssam:<file or folder> or hf:<Hub id or folder>")
    if family == "ssam":
        file = ssam_file(place, revision)
        return SsamEncoder.from_weights(read_tensors(file), readout, spec, digest([file]))
    if readout != "released":
        raise UserError(f"encoder {spec!r}: readout {readout!r} is for Audio-Mamba only")
    from parrot_dist.encoders.attention import load_attention  # transformers takes seconds to import

    folder = hub_folder(place, revision)
    return load_attention(folder, spec, digest(deciding_files(folder)))
