"""What a frozen prefix made of every sample, kept on storage so that it is computed once (contract 9).

An entry is a folder named by everything its numbers depend on. For each part of the corpus, PART_ROWS rows of the index
in a row, it holds one file with their records and, written after it, one that says where they lie. A record carries its
own checksum, and two runs that fill an entry at once write records of the same sizes: no reader can take a mixture or a
torn upload for the real thing.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from parrot_dist import storage
from parrot_dist.data.audio import Memory, empty
from parrot_dist.data.index import Index, Strings
from parrot_dist.data.plan import Layout, Rows
from parrot_dist.data.stream import READERS, Skipped, fetch
from parrot_dist.encoders import Activation

HEADER = struct.Struct("<2I3I")  # checksum of all behind it, steps, shape
RECORDS, PLACES = ".records", ".places.json"
PART_ROWS = 128  # bounds the memory of whoever computes a part
READ_AHEAD = 8  # records of a lane
IN_MEMORY_BYTES = 512 * 2**20  # an entry up to this size is read once, and kept by each rank


@dataclass(frozen=True)
class Kept:
    """A sample's row in the index, and its activation."""

    row: int
    activation: Activation


class TornRecord(Exception):  # noqa: N818
    """A record is not what was written."""


def pack(activation: Activation) -> bytes:
    """The record of an activation."""
    shape = [*activation.x.shape, 0, 0][:3]
    body = HEADER.pack(0, activation.steps, *shape)[4:] + activation.x.contiguous().numpy().tobytes()
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack(data: bytes) -> Activation:
    """The activation in a record.

    Raises:
        TornRecord: the bytes are not those that `pack` gave.
    """
    checksum, steps, *shape = HEADER.unpack_from(data)
    if zlib.crc32(memoryview(data)[4:]) != checksum:
        raise TornRecord("its checksum does not fit")
    values = np.frombuffer(data, np.float32, offset=HEADER.size).copy()
    return Activation(torch.from_numpy(values.reshape([size for size in shape if size])), steps)


def part_rows(part: int, rows: int) -> Rows:
    """The rows of the index, of `rows` in all, that a part holds."""
    return np.arange(part * PART_ROWS, min((part + 1) * PART_ROWS, rows))


def write_part(entry: str, part: int, activations: Mapping[int, Activation], skipped: Mapping[int, str]) -> None:
    """Write what the samples of a part gave: row -> activation, and row -> reason of those that cannot be read."""
    records = {row: pack(activation) for row, activation in activations.items()}
    storage.write_bytes(storage.join(entry, _name(part) + RECORDS), b"".join(records.values()))
    places = {
        "rows": list(records),
        "sizes": [len(record) for record in records.values()],
        "skipped": {str(row): reason for row, reason in skipped.items()},
    }
    storage.write_bytes(storage.join(entry, _name(part) + PLACES), json.dumps(places).encode())


def missing_parts(entry: str, rows: int) -> list[int]:
    """The parts that the entry of a corpus of `rows` samples does not have yet."""
    there = storage.list_files(entry)
    return [part for part in range(-(-rows // PART_ROWS)) if _name(part) + PLACES not in there]


def has_part(entry: str, part: int) -> bool:
    """Whether the entry has the part now."""
    return storage.exists(storage.join(entry, _name(part) + PLACES))


def _name(part: int) -> str:
    return f"part-{part:06d}"


@dataclass(frozen=True)
class FrozenCorpus:
    """A complete entry, as a source of `Kept` samples.

    Attributes:
        url: of the entry.
        shards: names of the files with records.
        layout: place of each row's record; of no size for a row without one.
        keys: name of each row.
        skipped: row -> why it has no record.
    """

    url: str
    shards: tuple[str, ...]
    layout: Layout
    keys: Strings
    skipped: dict[int, str] = field(repr=False)

    @classmethod
    def open(cls, entry: str, index: Index) -> FrozenCorpus:
        """The entry at `entry`, of the corpus of `index`.

        Raises:
            UserError: the entry is not complete.
        """
        names = [_name(part) for part in range(-(-len(index) // PART_ROWS))]
        with ThreadPoolExecutor(READERS) as pool:
            urls = [storage.join(entry, name + PLACES) for name in names]
            places = [json.loads(text) for text in pool.map(storage.read_bytes, urls)]
        layout = Layout(*(np.zeros(len(index), np.int64) for _ in range(3)))
        for number, place in enumerate(places):
            rows, sizes = np.array(place["rows"], np.int64), np.array(place["sizes"], np.int64)
            layout.shard[rows], layout.size[rows], layout.offset[rows] = number, sizes, np.cumsum(sizes) - sizes
        skipped = {int(row): why for place in places for row, why in place["skipped"].items()}
        return cls(entry, tuple(name + RECORDS for name in names), layout, index.key, skipped)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is in memory: a data process reads its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    @cached_property
    def in_memory(self) -> bool:
        """Whether the whole entry is small enough to be kept by each rank."""
        return int(self.layout.size.sum()) <= IN_MEMORY_BYTES

    @property
    def read_ahead(self) -> int:
        """Records are large and lie anywhere, so a window of them would only take memory."""
        return READ_AHEAD

    def read(self, rows: Rows) -> dict[int, bytes]:
        """Row -> its record, empty for a row without one."""
        found = fetch(self.url, self.shards, self.layout, rows[self.layout.size[rows] > 0])
        return {row: found.get(row, b"") for row in rows.tolist()}

    def decode(self, row: int, data: bytes, memory: Memory = empty) -> Kept | Skipped:
        """The activation of a row; `memory` is for waveforms.

        Raises:
            OSError: the record was changed on storage.
        """
        if row in self.skipped:
            return Skipped(row, str(self.keys[row]), self.skipped[row])
        return self._kept[row] if self.in_memory else self._unpack(row, data)

    def _unpack(self, row: int, data: bytes) -> Kept:
        try:
            return Kept(row, unpack(data))
        except (TornRecord, struct.error) as error:
            raise OSError(f"{self.url}: the record of {self.keys[row]} is damaged; delete this folder") from error

    @cached_property
    def _kept(self) -> dict[int, Kept]:
        """Every sample, unpacked once: done step by step, it took a tenth of a step with frozen encoders."""
        kept = {}
        with ThreadPoolExecutor(READERS) as pool:
            files = pool.map(lambda name: storage.read_bytes(storage.join(self.url, name)), self.shards)
            for shard, data in enumerate(files):
                for row in np.flatnonzero((self.layout.shard == shard) & (self.layout.size > 0)).tolist():
                    begin = int(self.layout.offset[row])
                    kept[row] = self._unpack(row, data[begin : begin + int(self.layout.size[row])])
        return kept
