"""One shard: from its clips to its tar, with a record beside it that lets a build that was cut off go on."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import NamedTuple

from parrot_dist import storage
from parrot_dist.data import audio
from parrot_dist.data.index import Row
from shards import tar
from shards.corpora import Clip, Stray
from shards.settings import Settings

RECORDS = "building"  # the folder of the records, as long as the build is not done
MAX_KEY = 80  # a ustar name holds 100 characters, suffix included


class Plan(NamedTuple):
    """What a shard shall hold."""

    name: str
    clips: list[Clip]
    digest: str
    """Of everything that decides its bytes."""

    @property
    def record(self) -> str:
        """Where its record lies below the corpus."""
        return f"{RECORDS}/{self.name}.json"


class Shard(NamedTuple):
    """What a shard holds; the content of its record."""

    name: str
    digest: str
    size: int
    """Bytes of the tar; 0 where not one of its clips can be read, and so there is no tar."""
    rows: list[Row]
    skipped: dict[str, str]
    """Path -> reason of the clips that are left out."""


class Sample(NamedTuple):
    """A clip, ready for a shard."""

    key: str
    samples: int
    data: bytes


def write_shard(settings: Settings, plan: Plan) -> Shard:
    """Decode, resample, normalise and pack the clips; write the tar, then the record. Memory: the tar, twice."""
    rows: list[Row] = []
    packed: list[bytes] = []
    skipped: dict[str, str] = {}
    offset = 0
    for clip in plan.clips:
        sample = prepare(settings, clip)
        if isinstance(sample, Stray):
            skipped[sample.path] = sample.reason
            continue
        place = (plan.name, offset, len(sample.data), sample.samples)
        rows.append(Row(sample.key, *place, clip.label, clip.speaker, clip.corpus, clip.language, clip.fold))
        packed.append(sample.data)
        offset += len(sample.data)
    shard = Shard(plan.name, plan.digest, offset + len(tar.END) if rows else 0, rows, skipped)
    if rows:
        storage.write_bytes(storage.join(settings.out, plan.name), b"".join([*packed, tar.END]))
    storage.write_bytes(storage.join(settings.out, plan.record), json.dumps(shard).encode())
    return shard


def read_record(out: str, plan: Plan) -> Shard | None:
    """What the record of this shard at `out` says; None if it is the record of another build."""
    name, digest, size, rows, skipped = json.loads(storage.read_bytes(storage.join(out, plan.record)))
    return Shard(name, digest, size, [Row(*row) for row in rows], skipped) if digest == plan.digest else None


def prepare(settings: Settings, clip: Clip) -> Sample | Stray:
    """Decode, resample, normalise and pack one clip."""
    try:
        waveform = audio.decode(storage.read_bytes(storage.join(settings.source, clip.path)))
    except ValueError as error:
        return Stray(clip.path, str(error))
    if settings.normalise == "peak":
        waveform = audio.peak_normalise(waveform)
    facts = {name: value for name, value in asdict(clip).items() if name != "path"}
    facts |= {"samples": len(waveform), "source": clip.path}
    described = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
    key = make_key(clip)
    return Sample(key, len(waveform), tar.pack(key, {"flac": audio.encode_flac(waveform), "json": described}))


def make_key(clip: Clip) -> str:
    """A key that any tar and any WebDataset reader takes: ASCII, no dots, short, still readable, and of one path only.

    The digest tells apart the paths that read the same, as labels in another script do.
    """
    path = f"{clip.corpus}/{clip.path.rpartition('.')[0]}"
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", path)
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    return f"{readable[: MAX_KEY - 13]}-{digest}"
