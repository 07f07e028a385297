"""A bounded file on the disk of a node, in which its processes keep what they have read of a corpus.

The file is an array of slots, and every block of the corpus has its slot: the bound cannot be passed, and nothing has
to be counted or cleaned up. A slot says which sectors of its block it holds, so that ranges need not end where blocks
do, and carries a checksum of all that, so what is read while it is written, or was not written to its end, counts as
not there. A slot's content gives way to another corpus, but not to another block of its own: every block of a corpus is
used once an epoch, so replacing one by another would gain nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parrot_dist.data.plan import Rows

SECTOR_BYTES = 512  # tar members begin and end at multiples of this
BLOCK_BYTES = 256 * 2**10
HEADER = struct.Struct("<16sQ64sI")  # corpus, number of the block, a bit for each sector it has, checksum of all this
SLOT_BYTES = HEADER.size + BLOCK_BYTES

log = logging.getLogger(__name__)


class _Slot(NamedTuple):
    """What a slot holds of a block of the corpus."""

    number: int
    held: int
    """A bit for each sector of the block that is there."""
    block: bytes


class NodeCache:
    """Blocks of one corpus in the file at `path`, which holds at most `size` bytes. Picklable; keeps nothing open.

    Args:
        corpus: what tells the corpus from others, and from itself before it was changed.
        shard_sizes: (shards,) bytes.
    """

    def __init__(self, path: Path, size: int, corpus: str, shard_sizes: Rows) -> None:
        self.path, self.slots = path, size // SLOT_BYTES
        self.corpus = hashlib.sha256(corpus.encode()).digest()[:16]
        self.shard_sizes = shard_sizes
        blocks = -(-shard_sizes // BLOCK_BYTES)
        self.first = np.cumsum(blocks) - blocks  # number of each shard's first block
        self.off = self.slots == 0

    def read(self, shard: int, begin: int, end: int, load: Callable[[int, int], bytes]) -> bytes:
        """The bytes [begin, end) of a shard, of which `load` reads those that are not here."""
        if self.off:
            return load(begin, end)
        first = begin // SECTOR_BYTES * SECTOR_BYTES
        stop = min(-(-end // SECTOR_BYTES) * SECTOR_BYTES, int(self.shard_sizes[shard]))
        edges = [first, *range((first // BLOCK_BYTES + 1) * BLOCK_BYTES, stop, BLOCK_BYTES), stop]
        spans = list(pairwise(edges))  # each within one block
        blocks = [int(self.first[shard]) + a // BLOCK_BYTES for a in edges[:-1]]
        found = self._get(blocks, spans)
        for missing, run in groupby(range(len(spans)), lambda i: found[i] is None):
            if missing:
                at = list(run)
                begins, start = [spans[i][0] for i in at], spans[at[0]][0]
                data = load(start, spans[at[-1]][1])
                found[at[0] : at[-1] + 1] = parts = [data[spans[i][0] - start : spans[i][1] - start] for i in at]
                self._put(blocks[at[0] : at[-1] + 1], begins, parts)
        return b"".join(part for part in found if part is not None)[begin - first :][: end - begin]

    def _get(self, blocks: list[int], spans: list[tuple[int, int]]) -> list[bytes | None]:
        """The bytes of each span, which lies in that block; None for those that are not all here."""
        found: list[bytes | None] = [None] * len(spans)
        with self._giving_up(), self._open() as file:
            for i, (number, (begin, end)) in enumerate(zip(blocks, spans, strict=True)):
                slot, wanted = self._read(file, number), _sectors(begin, end)
                if slot and slot.number == number and slot.held & wanted == wanted:
                    found[i] = slot.block[begin % BLOCK_BYTES :][: end - begin]
        return found

    def _put(self, blocks: list[int], begins: list[int], parts: list[bytes]) -> None:
        """Keep parts of blocks, each with where in its shard it begins."""
        with self._giving_up(), self._open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of two who add to one block, both shall be kept; ends with the file
            for number, begin, part in zip(blocks, begins, parts, strict=True):
                slot = self._read(file, number) or _Slot(number, 0, bytes(BLOCK_BYTES))
                if slot.number == number:
                    at, held = begin % BLOCK_BYTES, slot.held | _sectors(begin, begin + len(part))
                    self._write(file, _Slot(number, held, slot.block[:at] + part + slot.block[at + len(part) :]))

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """What fails on the disk only switches the cache off."""
        try:
            yield
        except OSError as error:
            if not self.off:
                log.warning("%s: the node cache is off from here on (%s)", self.path, error)
            self.off = True

    @contextmanager
    def _open(self) -> Iterator[int]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size > self.slots * SLOT_BYTES:  # from when the bound was higher
                os.ftruncate(file, self.slots * SLOT_BYTES)
            yield file
        finally:
            os.close(file)

    def _read(self, file: int, number: int) -> _Slot | None:
        """The slot of a block, which may hold another block of this corpus; None if it holds nothing of it."""
        data = os.pread(file, SLOT_BYTES, number % self.slots * SLOT_BYTES)
        if len(data) < SLOT_BYTES:
            return None
        corpus, number, held, checksum = HEADER.unpack_from(data)
        slot = _Slot(number, int.from_bytes(held, "little"), data[HEADER.size :])
        return slot if corpus == self.corpus and checksum == self._checksum(slot) else None

    def _write(self, file: int, slot: _Slot) -> None:
        held = slot.held.to_bytes(BLOCK_BYTES // SECTOR_BYTES // 8, "little")
        data = HEADER.pack(self.corpus, slot.number, held, self._checksum(slot)) + slot.block
        if os.pwrite(file, data, slot.number % self.slots * SLOT_BYTES) < len(data):
            raise OSError("the disk is full")

    def _checksum(self, slot: _Slot) -> int:
        return zlib.crc32(slot.block, zlib.crc32(self.corpus + f"{slot.number} {slot.held}".encode()))


def _sectors(begin: int, end: int) -> int:
    """A bit for each sector of its block that the bytes [begin, end) of a shard, within one block, take."""
    first = begin % BLOCK_BYTES // SECTOR_BYTES
    return (1 << -(-(end - begin) // SECTOR_BYTES)) - 1 << first
