"""`python -m shards.build corpus=NAME source=FOLDER out=URL`: make WebDataset shards and their index from a corpus.

Each clip becomes two members of a tar: 16-bit FLAC, mono at 16 kHz, and JSON with its label, speaker, corpus, language,
text and length. The same corpus and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import NamedTuple, TypeVar, cast

import numpy as np
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parrot_dist import storage
from parrot_dist.data import audio
from parrot_dist.data.index import INDEX_NAME, Index, Row, check_index, read_index, write_index
from parrot_dist.errors import UserError, exits_cleanly, nearest
from shards import corpora, tar
from shards.console import name_skipped, progress
from shards.corpora import Clip, Stray

FORMAT = 2  # raise it when the same input gives other bytes than before
RECORD = "build.json"
SHARD_NAME = re.compile(r"shard-\d{6}\.tar")
MAX_KEY = 80  # a ustar name holds 100 characters, suffix included

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Settings:
    """What can be said as key=value."""

    corpus: str = MISSING  # name of a reader: a module of shards.corpora
    source: str = MISSING  # folder or URL with the corpus as it is distributed
    out: str = MISSING  # URL or folder for the shards and the index
    shard_mb: float = 4.0  # a shard is closed once it holds so many megabytes; small corpora still feed many readers
    normalise: str = "peak"  # peak (the paper's) | none
    seed: int = 0  # of the order of speakers and of clips in the shards


class Survey(NamedTuple):
    """What there is to build, before any audio is read."""

    clips: list[Clip]
    skipped: dict[str, str]
    digest: str
    """Of everything that decides the bytes: files with their sizes, their descriptions, the settings."""


class Sample(NamedTuple):
    """A clip, ready for a shard."""

    key: str
    clip: Clip
    samples: int
    data: bytes


@exits_cleanly
def main() -> int:
    settings = parse(sys.argv[1:])
    found = survey(settings)
    if is_built(settings.out, found.digest):
        print(f"{settings.out}: already built")
        return 0
    index, skipped = build(settings, found)
    name_skipped(skipped)
    print(summary(settings.out, index, skipped))
    return 0


def parse(words: list[str]) -> Settings:
    """The settings in `key=value` words.

    Raises:
        UserError: lists every word that is no setting (with the nearest one), of a wrong type, or missing.
    """
    settings = OmegaConf.structured(Settings)
    known = [field.name for field in fields(Settings)]
    faults = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            near = nearest(key, known)
            faults.append(f"{word}: " + (f"did you mean {near}=...?" if near else f"settings are {', '.join(known)}"))
            continue
        try:
            OmegaConf.update(settings, key, value)
        except OmegaConfBaseException as error:
            faults.append(f"{word}: {str(error).splitlines()[0]}")
    faults += [f"{key}=... must be given" for key in sorted(OmegaConf.missing_keys(settings))]
    if settings.normalise not in ("peak", "none"):
        faults.append(f"normalise={settings.normalise}: must be peak or none")
    if settings.shard_mb <= 0:
        faults.append(f"shard_mb={settings.shard_mb}: must be above 0")
    if faults:
        raise UserError("the settings cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    return cast(Settings, OmegaConf.to_object(settings))


def survey(settings: Settings) -> Survey:
    """Ask the corpus's reader what every file is.

    Raises:
        UserError: no such reader, no files, or none that fits the reader's rules.
    """
    files = storage.list_files(settings.source)
    if not files:
        raise UserError(f"source={settings.source}: there are no files; check the place")
    entries = list(corpora.find(settings.corpus)(settings.source, files))
    clips = [entry for entry in entries if isinstance(entry, Clip)]
    skipped = {entry.path: entry.reason for entry in entries if isinstance(entry, Stray)}
    if not clips:
        name_skipped(skipped)
        raise UserError(f"source={settings.source}: no file fits the layout of corpus={settings.corpus}")
    facts = {
        "format": FORMAT,
        "clips": [[asdict(clip), files[clip.path]] for clip in clips],
        "settings": [settings.shard_mb, settings.normalise, settings.seed],
    }
    return Survey(clips, skipped, hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())


def is_built(out: str, digest: str) -> bool:
    """Whether `out` holds the finished build of this input: its record says so, and the index matches the shards."""
    record = storage.join(out, RECORD)
    if not storage.exists(record) or json.loads(storage.read_bytes(record))["digest"] != digest:
        return False
    try:
        check_index(out, read_index(out))
    except UserError:
        return False
    return True


def build(settings: Settings, found: Survey) -> tuple[Index, dict[str, str]]:
    """Write shards, record and index; returns the index, and path -> reason of what was left out.

    The old index goes first and the new one comes last, so there is never an index beside shards of another build.

    Raises:
        UserError: not one clip could be read, or the store refuses.
    """
    storage.delete(storage.join(settings.out, INDEX_NAME))
    skipped = dict(found.skipped)
    clips = arrange(found.clips, settings.seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # soundfile and soxr let go of the interpreter's lock
        prepared = map_ahead(pool, partial(prepare, settings), clips)
        samples = drop_strays(progress(prepared, "building", len(clips)), skipped)
        rows, sizes = write_shards(settings, samples)
    if not rows:
        name_skipped(skipped)
        raise UserError(f"source={settings.source}: none of its {len(clips)} clips can be read")
    for name in storage.list_files(settings.out):
        if SHARD_NAME.fullmatch(name) and name not in sizes:
            storage.delete(storage.join(settings.out, name))
    record = {"digest": found.digest, "skipped": skipped}
    storage.write_bytes(storage.join(settings.out, RECORD), json.dumps(record, sort_keys=True, indent=1).encode())
    return write_index(settings.out, rows, sizes), skipped


def arrange(clips: list[Clip], seed: int) -> list[Clip]:
    """The order of the clips in the shards: speakers in random order, each one's clips together, in random order.

    A split by speakers then takes runs of bytes that lie together and not every tenth sample of every shard, so that
    reading it stays sequential.
    """
    rng = np.random.default_rng(seed)
    speakers: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: clip.path):
        speakers.setdefault(clip.speaker, []).append(clip)
    names = sorted(speakers)
    return [
        speakers[names[speaker]][number]
        for speaker in rng.permutation(len(names))
        for number in rng.permutation(len(speakers[names[speaker]]))
    ]


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
    return Sample(key, clip, len(waveform), tar.pack(key, {"flac": audio.encode_flac(waveform), "json": described}))


def make_key(clip: Clip) -> str:
    """A key that any tar and any WebDataset reader takes: ASCII, no dots, short, still readable, and of one path only.

    The digest tells apart the paths that read the same, as labels in another script do.
    """
    path = f"{clip.corpus}/{clip.path.rpartition('.')[0]}"
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", path)
    digest = hashlib.sha256(path.encode()).hexdigest()[:12]
    return f"{readable[: MAX_KEY - 13]}-{digest}"


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 64
) -> Iterator[Result]:
    """As `pool.map`, but with at most `ahead` results waiting: a corpus need not fit into memory."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def drop_strays(prepared: Iterable[Sample | Stray], skipped: dict[str, str]) -> Iterator[Sample]:
    """The usable samples; the others go into `skipped`."""
    taken: dict[str, str] = {}
    for entry in prepared:
        if isinstance(entry, Stray):
            skipped[entry.path] = entry.reason
        elif entry.key in taken:
            skipped[entry.clip.path] = f"has the same key as {taken[entry.key]}: {entry.key}"
        else:
            taken[entry.key] = entry.clip.path
            yield entry


def fill_shards(samples: Iterable[Sample], limit: float) -> Iterator[list[Sample]]:
    """Runs of samples that together reach `limit` bytes; the last may be smaller."""
    shard: list[Sample] = []
    size = 0
    for sample in samples:
        shard.append(sample)
        size += len(sample.data)
        if size >= limit:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def write_shards(settings: Settings, samples: Iterable[Sample]) -> tuple[list[Row], dict[str, int]]:
    """Write the shards one by one; returns the rows of the index and the size of each shard."""
    rows: list[Row] = []
    sizes: dict[str, int] = {}
    for number, shard in enumerate(fill_shards(samples, settings.shard_mb * 1e6)):
        name, offset = f"shard-{number:06d}.tar", 0
        for key, clip, length, data in shard:
            place = (name, offset, len(data), length)
            rows.append(Row(key, *place, clip.label, clip.speaker, clip.corpus, clip.language))
            offset += len(data)
        storage.write_bytes(storage.join(settings.out, name), b"".join(sample.data for sample in shard) + tar.END)
        sizes[name] = offset + len(tar.END)
    return rows, sizes


def summary(out: str, index: Index, skipped: dict[str, str]) -> str:
    """What was built, for people."""
    hours = index.samples.sum() / audio.SAMPLE_RATE / 3600
    size = sum(index.shard_sizes.values()) / 1e6
    lines = [
        f"{out}: {len(index):,} clips, {hours:.2f} hours, {len(set(index.speaker))} speakers, "
        f"{len(index.shard_sizes)} shards, {size:.1f} MB, {len(skipped)} skipped"
    ]
    for name, column in (("labels", index.label), ("languages", index.language), ("corpora", index.corpus)):
        counts = sorted(Counter(column).items())
        lines.append(f"  {name:9} " + ", ".join(f"{value} {count:,}" for value, count in counts))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
