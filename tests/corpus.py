"""A corpus of short tones: one pitch a clip number, two emotions in turn."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import soundfile

from parrot_dist import storage
from parrot_dist.data.audio import SAMPLE_RATE, encode_flac
from parrot_dist.data.index import Row, write_index
from shards.tar import END, pack

CLASSES = ("anger", "joy")


def write_corpus(url: str, speakers: int, clips: int, seconds: float = 0.3) -> str:
    """Write one shard for each two speakers, and the index; returns `url`."""
    rows: list[Row] = []
    sizes: dict[str, int] = {}
    for number, pair in enumerate(range(0, speakers, 2)):
        shard, data = f"shard-{number:06d}.tar", b""
        for speaker in range(pair, min(pair + 2, speakers)):
            for clip in range(clips):
                key, label = f"s{speaker:02d}-{clip:04d}", CLASSES[clip % 2]
                wave = tone(100 + 20 * clip, seconds, seed=1000 * speaker + clip)
                facts = {"label": label, "speaker": f"s{speaker}", "corpus": "tones", "language": "none"}
                sample = pack(key, {"flac": encode_flac(wave), "json": json.dumps(facts).encode()})
                rows.append(Row(key, shard, len(data), len(sample), len(wave), *facts.values()))
                data += sample
        storage.write_bytes(storage.join(url, shard), data + END)
        sizes[shard] = len(data + END)
    write_index(url, rows, sizes)
    return url


def flac_that_claims(frames: int, rate: int = SAMPLE_RATE, channels: int = 1) -> bytes:
    """Half a second whose header says that it has so many frames, below 2**32; 0: that it does not say."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((rate // 2, channels)), rate, format="FLAC", subtype="PCM_16")
    data = bytearray(file.getvalue())
    total = slice(8 + 14, 8 + 18)  # STREAMINFO, lower 32 bits of the number of samples
    assert struct.unpack(">I", data[total])[0] == rate // 2
    data[total] = struct.pack(">I", frames)
    return bytes(data)


def tone(pitch: float, seconds: float, seed: int = 0) -> np.ndarray:
    """A sine with some noise, (samples,) float32 at 16 kHz."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time))
    return (0.5 * np.sin(2 * np.pi * pitch * time) + noise).astype(np.float32)
