"""`python -m shards.build corpus=NAME source=FOLDER out=URL`: make WebDataset shards and their index from a corpus.

Each clip becomes two members of a tar: 16-bit FLAC, mono at 16 kHz, and JSON with its label, speaker, corpus, language,
text, fold and length. The same corpus and settings give the same bytes, on any number of processors. A build that was
cut off goes on where it was. Where RAY_ADDRESS names a cluster, its workers make the shards.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import numpy as np

from parrot_dist import storage
from parrot_dist.data import audio
from parrot_dist.data.index import INDEX_NAME, Index, check_index, read_index, write_index
from parrot_dist.errors import UserError, exits_cleanly
from shards import corpora
from shards.console import name_skipped, printable, progress
from shards.corpora import Clip, Stray
from shards.pool import run_all
from shards.settings import Settings, command_line, parse
from shards.shard import RECORDS, Plan, Sample, Shard, make_key, prepare, read_record, write_shard

FORMAT = 3  # raise it when the same input gives other bytes than before
RECORD = "build.json"
SHARD_NAME = re.compile(r"shard-\d{6}\.tar")
TORN = re.compile(r"\.(shard-\d{6}\.tar|build\.json|index\.parquet)\.[0-9a-f]{32}")  # a write that was killed leaves it
PROBES = 8  # clips that are encoded to predict the size of the others
READERS = 32  # records read at a time; the work is waiting for the store
REASONS = 5  # of what was left out, in the summary


class Survey(NamedTuple):
    """What there is to build, before any audio is read."""

    clips: list[Clip]
    sizes: dict[str, int]
    """Path -> bytes of every file."""
    skipped: dict[str, str]
    digest: str
    """Of everything that decides the bytes: files with their versions, their descriptions, the settings."""


@exits_cleanly
def main() -> int:
    settings = parse(command_line("shards.build", __doc__).parse_args().words)
    found = survey(settings)
    if is_built(settings.out, found.digest):
        storage.delete(storage.join(settings.out, RECORDS))  # still there if it was killed right after the index
        print(f"{settings.out}: already built")
        return 0
    index, skipped = build(settings, found)
    name_skipped(skipped)
    print(printable(summary(settings.out, index, skipped)))
    return 0


def survey(settings: Settings) -> Survey:
    """Ask the corpus's reader what every file is.

    Raises:
        UserError: no such reader, no files, or none that fits the reader's rules.
    """
    versions = storage.list_versions(settings.source)
    files = {path: size for path, (size, _) in versions.items()}
    if not files:
        raise UserError(f"source={settings.source}: there are no files; check the place")
    entries = list(corpora.find(settings.corpus)(settings.source, files))
    skipped = {entry.path: entry.reason for entry in entries if isinstance(entry, Stray)}
    clips: dict[str, Clip] = {}
    for clip in (entry for entry in entries if isinstance(entry, Clip)):
        if not _is_text(clip):
            skipped[clip.path] = "its name is not UTF-8"
            continue
        taken = clips.setdefault(make_key(clip), clip)
        if taken is not clip:
            skipped[clip.path] = f"has the same key as {taken.path}: {make_key(clip)}"
    if not clips:
        name_skipped(skipped)
        raise UserError(f"source={settings.source}: no file fits the layout of corpus={settings.corpus}")
    facts = {
        "format": FORMAT,
        "clips": [[asdict(clip), versions[clip.path]] for clip in clips.values()],
        "settings": [settings.shard_mb, settings.normalise, settings.seed],
    }
    return Survey(list(clips.values()), files, skipped, _digest(facts))


def _is_text(clip: Clip) -> bool:
    """Whether shards can hold all that is said of it: the bytes of a file's name, on disk, may be no text."""
    try:
        "".join(asdict(clip).values()).encode()
    except UnicodeEncodeError:
        return False
    return True


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
        UserError: not one clip could be read, the store refuses, or it does not keep what workers write.
    """
    plans = plan_shards(settings, found)
    storage.delete(storage.join(settings.out, INDEX_NAME))
    shards = finished(settings.out, plans)
    missing = [plan for plan in plans if plan.name not in shards]
    for shard in progress(run_all(partial(write_shard, settings), missing), "building", len(missing)):
        shards[shard.name] = shard
    ordered = [shards[plan.name] for plan in plans]
    skipped = found.skipped | {path: reason for shard in ordered for path, reason in shard.skipped.items()}
    sizes = {shard.name: shard.size for shard in ordered if shard.size}
    if not sizes:
        name_skipped(skipped)
        raise UserError(f"source={settings.source}: none of its {len(found.clips)} clips can be read")
    _clear(settings.out, sizes)
    record = {"digest": found.digest, "skipped": skipped}
    storage.write_bytes(storage.join(settings.out, RECORD), json.dumps(record, sort_keys=True, indent=1).encode())
    index = write_index(settings.out, (row for shard in ordered for row in shard.rows), sizes)
    storage.delete(storage.join(settings.out, RECORDS))
    return index, skipped


def plan_shards(settings: Settings, found: Survey) -> list[Plan]:
    """Which clips go into which shard, the same however many workers there are.

    A shard is closed once its clips are predicted to reach `shard_mb`. A clip's size is predicted from that of its
    file: the files of one corpus are encoded alike, so a few of them tell how much smaller the shards will be.
    """
    clips = arrange(found.clips, settings.seed)
    probes = [clips[number] for number in np.linspace(0, len(clips) - 1, min(PROBES, len(clips)), dtype=int)]
    packed = {clip.path: prepare(settings, clip) for clip in probes}
    encoded = {path: len(sample.data) for path, sample in packed.items() if isinstance(sample, Sample)}
    ratio = sum(encoded.values()) / max(sum(found.sizes[path] for path in encoded), 1)
    runs = fill([(clip, found.sizes[clip.path] * ratio) for clip in clips], settings.shard_mb * 1e6)
    return [
        Plan(f"shard-{number:06d}.tar", run, _digest([found.digest, number, [clip.path for clip in run]]))
        for number, run in enumerate(runs)
    ]


def arrange(clips: Sequence[Clip], seed: int) -> list[Clip]:
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


def fill(weighted: Iterable[tuple[Clip, float]], limit: float) -> list[list[Clip]]:
    """Runs of clips that together reach `limit`; the last may be smaller."""
    runs: list[list[Clip]] = []
    weight = limit
    for clip, size in weighted:
        if weight >= limit:
            runs.append([])
            weight = 0
        runs[-1].append(clip)
        weight += size
    return runs


def finished(out: str, plans: Sequence[Plan]) -> dict[str, Shard]:
    """Name -> shard of those plans that a build which was cut off has carried out, record and tar both being there."""
    there = storage.list_files(out)
    candidates = [plan for plan in plans if plan.record in there]
    with ThreadPoolExecutor(READERS) as pool:
        records = pool.map(partial(read_record, out), candidates)
    return {shard.name: shard for shard in records if shard and there.get(shard.name, 0) == shard.size}


def _clear(out: str, sizes: Mapping[str, int]) -> None:
    """Remove the shards of other builds, and what killed ones left of their files.

    Raises:
        UserError: a shard is not there as it was written.
    """
    there = storage.list_files(out)
    for name, size in sizes.items():
        if there.get(name) != size:
            raise UserError(
                f"{out}: {name} is not there as it was written; workers need a place that all of them share"
            )
    for name in there:
        if (SHARD_NAME.fullmatch(name) and name not in sizes) or TORN.fullmatch(name):
            storage.delete(storage.join(out, name))


def summary(out: str, index: Index, skipped: Mapping[str, str]) -> str:
    """What was built, for people."""
    hours = index.samples.sum() / audio.SAMPLE_RATE / 3600
    size = sum(index.shard_sizes.values()) / 1e6
    lines = [
        f"{out}: {len(index):,} clips, {hours:.2f} hours, {len(set(index.speaker))} speakers, "
        f"{len(index.shard_sizes)} shards, {size:.1f} MB, {len(skipped):,} skipped"
    ]
    columns = {"labels": index.label, "languages": index.language, "corpora": index.corpus, "folds": index.fold}
    for name, column in columns.items():
        counts = sorted(Counter(column).items())
        shares = (f"{value or 'none'} {count:,} ({count / len(index):.0%})" for value, count in counts)
        lines.append(f"  {name:9} " + ", ".join(shares))
    for reason, count in Counter(skipped.values()).most_common(REASONS):
        lines.append(f"  skipped   {count:,}: {reason}")
    return "\n".join(lines)


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
