"""`python -m shards.check URL`: verify the shards at a URL and their index, down to every sample, and name every fault.

Tars, names, audio and labels are read and compared with the index; nothing is unpacked, unpickled or changed. Exit code
0: no fault; 1: faults, one a line; 2: there is nothing to check.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from parrot_dist import storage
from parrot_dist.data import index
from parrot_dist.data.index import INDEX_NAME, BrokenSample, Index, Row
from parrot_dist.errors import Unreachable, UserError, exits_cleanly
from shards import tar
from shards.console import printable, progress
from shards.index import list_shards, make_row

READERS = 8  # shards read at a time

Rows = Mapping[str, Row]
"""Key -> what the index says of a sample."""


class Fault(NamedTuple):
    """Something that is wrong."""

    place: str
    """A file, or a shard and a key."""
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Found(NamedTuple):
    """What one shard holds, and what is wrong with it."""

    keys: list[str]
    faults: list[Fault]


@exits_cleanly
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shards.check", description=__doc__)
    parser.add_argument("url", help="where shards and index lie: s3://bucket/prefix or a folder")
    url: str = parser.parse_args().url
    faults = 0
    for fault in check(url):
        print(printable(str(fault)))
        faults += 1
    print(f"{url}: {f'{faults:,} faults' if faults else 'no fault'}")
    return 1 if faults else 0


def check(url: str) -> Iterator[Fault]:
    """The faults of the corpus at `url`, as they are found; memory holds the index, the keys and eight samples.

    Raises:
        UserError: there are no shards, or the store does not answer.
    """
    there = list_shards(url)
    listed: Index | None = None
    try:
        listed = index.read_index(url)
        yield from _compare_sizes(listed.shard_sizes, there)
    except Unreachable:
        raise
    except UserError as error:
        yield Fault(INDEX_NAME, str(error))
    holder: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        checked = pool.map(partial(check_shard, url, _rows_by_shard(listed)), there)
        for shard, (keys, faults) in zip(there, progress(checked, "checking", len(there)), strict=True):
            yield from faults
            for key in keys:
                if key in holder:
                    yield Fault(f"{shard} {key}", f"its key is also in {holder[key]}")
                holder[key] = shard


def check_shard(url: str, rows_of: Callable[[str], Rows | None], shard: str) -> Found:
    """Check one shard against the rows that the index has for it; `rows_of` gives None where there is no index.

    Raises:
        Unreachable: the store does not answer.
    """
    place, rows, found = storage.join(url, shard), rows_of(shard), Found([], [])
    fs, path = storage.filesystem(place)
    try:
        with storage.explained(place), fs.open(path, "rb") as file:
            for key, offset, size in tar.ranges(file):
                found.keys.append(key)
                file.seek(offset)
                data = file.read(min(size, index.MAX_SAMPLE_BYTES + 1))
                reasons = examine(key, shard, offset, data, rows)
                found.faults.extend(Fault(f"{shard} {key}", reason) for reason in reasons)
    except tarfile.TarError as error:
        found.faults.append(Fault(shard, f"not a whole tar: {error}"))
    except Unreachable:
        raise
    except (UserError, OSError) as error:
        found.faults.append(Fault(shard, str(error)))
    lost = sorted(set(rows or ()) - set(found.keys))
    found.faults.extend(Fault(f"{shard} {key}", "is in the index and not in the shard") for key in lost)
    return found


def examine(key: str, shard: str, offset: int, data: bytes, rows: Rows | None) -> Iterator[str]:
    """What is wrong with the sample `key`, whose tar bytes are `data`, itself and against its row of the index."""
    reasons: list[str] = []
    try:
        made = make_row(key, shard, offset, data)
    except BrokenSample as error:
        reasons.append(error.reason)
    try:
        length = len(index.read_sample(data, key))
    except BrokenSample as error:
        reasons.append(error.reason)
    if reasons:
        yield from dict.fromkeys(reasons)
        return
    if made.samples != length:
        yield f"its JSON member says {made.samples} samples, its audio has {length}"
    if rows is not None:
        yield from _compare(made, rows.get(key))


def _compare(made: Row, listed: Row | None) -> Iterator[str]:
    if listed is None:
        yield "is in the shard and not in the index"
        return
    for name, here, there in zip(Row._fields, made, listed, strict=True):
        if here != there:
            yield f"{name} is {here or 'empty'} in the shard and {there or 'empty'} in the index"


def _compare_sizes(listed: Mapping[str, int], there: Mapping[str, int]) -> Iterator[Fault]:
    for shard in sorted({*listed, *there}):
        if shard not in there:
            yield Fault(shard, "is in the index, but there is no such file")
        elif shard not in listed:
            yield Fault(shard, "is not in the index")
        elif listed[shard] != there[shard]:
            yield Fault(shard, f"has {there[shard]} bytes, the index says {listed[shard]}")


def _rows_by_shard(listed: Index | None) -> Callable[[str], Rows | None]:
    if listed is None:
        return lambda shard: None
    columns = [getattr(listed, name) for name in Row._fields]
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, shard in enumerate(listed.shard):
        numbers[shard].append(number)
    return lambda shard: {listed.key[n]: Row(*(column[n] for column in columns)) for n in numbers.get(shard, ())}


if __name__ == "__main__":
    sys.exit(main())
