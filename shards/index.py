"""`python -m shards.index URL`: make the index of the WebDataset shards at a URL, from the tars alone.

It serves shards that others made, as long as a JSON member names label and speaker, and it restores a lost index: for
shards of `shards.build` the result is the same, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from parrot_dist import storage
from parrot_dist.data import audio, index
from parrot_dist.data.index import BrokenSample, Index, Row
from parrot_dist.errors import UserError, exits_cleanly
from shards import tar
from shards.console import name_skipped, progress
from shards.corpora import UNKNOWN_LANGUAGE

READERS = 8  # shards read at a time; the work is waiting for the store


@exits_cleanly
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shards.index", description=__doc__)
    parser.add_argument("url", help="where the shards lie: s3://bucket/prefix or a folder")
    url: str = parser.parse_args().url
    made, skipped = rebuild(url)
    name_skipped(skipped)
    print(f"{url}: index of {len(made):,} samples in {len(made.shard_sizes):,} shards, {len(skipped):,} skipped")
    return 0


def rebuild(url: str) -> tuple[Index, dict[str, str]]:
    """Write the index of the shards at `url`; returns it, and key -> reason of the samples it leaves out.

    Raises:
        UserError: no shards there, one that is no tar, or no usable sample in any.
    """
    sizes = list_shards(url)
    rows: dict[str, Row] = {}
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for found in progress(pool.map(partial(scan, url), sizes), "indexing", len(sizes)):
            for entry in found:
                if isinstance(entry, BrokenSample):
                    skipped[entry.key] = entry.reason
                elif entry.key in rows:
                    skipped[f"{entry.shard} {entry.key}"] = f"its key is also in {rows[entry.key].shard}"
                else:
                    rows[entry.key] = entry
    if not rows:
        name_skipped(skipped)
        raise UserError(f"{url}: no sample in its {len(sizes)} shards can be used")
    return index.write_index(url, rows.values(), sizes), skipped


def list_shards(url: str) -> dict[str, int]:
    """Name -> size in bytes of every shard at `url`.

    Raises:
        UserError: there are none.
    """
    sizes = {name: size for name, size in storage.list_files(url).items() if name.endswith(".tar")}
    if not sizes:
        raise UserError(f"{url}: no .tar shards there; check the bucket and the prefix")
    return sizes


def scan(url: str, shard: str) -> list[Row | BrokenSample]:
    """A row, or what is wrong, for every sample of one shard.

    Raises:
        UserError: the shard is not a tar, or it is cut short.
    """
    place = storage.join(url, shard)
    fs, path = storage.filesystem(place)
    found: list[Row | BrokenSample] = []
    try:
        with storage.explained(place), fs.open(path, "rb") as file:
            for key, offset, size in tar.ranges(file):
                file.seek(offset)
                try:
                    found.append(make_row(key, shard, offset, file.read(min(size, index.MAX_SAMPLE_BYTES + 1))))
                except BrokenSample as error:
                    found.append(error)
    except tarfile.TarError as error:
        raise UserError(f"{place}: not a whole tar ({error}); build or copy this shard again") from error
    return found


def make_row(key: str, shard: str, offset: int, data: bytes) -> Row:
    """The row of the sample whose tar bytes are `data`.

    Raises:
        BrokenSample: a name that leads out of its folder, no JSON member with label and speaker, or no usable audio.
    """
    if tar.leads_out(key):
        raise BrokenSample(key, "its name leads out of the folder")
    if len(data) > index.MAX_SAMPLE_BYTES:
        raise BrokenSample(key, f"over {index.MAX_SAMPLE_BYTES} bytes are too many for one utterance")
    members = index.parse_members(data, key)
    index.audio_member(members, key)
    try:
        facts = json.loads(members["json"])
        label, speaker = str(facts["label"]), str(facts["speaker"])
        if not label or not speaker:
            raise ValueError("one of them is empty")
        origin = str(facts.get("corpus", "")), str(facts.get("language", UNKNOWN_LANGUAGE)), str(facts.get("fold", ""))
        "".join((key, label, speaker, *origin)).encode()  # what is no text fits no index
        samples = int(facts.get("samples", 0))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BrokenSample(key, f"no JSON member with label and speaker ({error!r})") from error
    if not 0 < samples <= audio.MAX_SAMPLES:  # shards that others made need not say it
        samples = len(index.read_sample(data, key))
    return Row(key, shard, offset, len(data), samples, label, speaker, *origin)


if __name__ == "__main__":
    sys.exit(main())
