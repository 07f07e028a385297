"""A bounded file on the disk of a node, in which its processes keep what they have read of a corpus.

The file is an array of slots, and every block of the corpus has its slot: the bound cannot be passed, and nothing has
to be counted, locked or cleaned up. A slot carries a checksum of all that it holds, so what two processes write at
once, or one does not finish, counts as not there. A slot's content gives way to another corpus, but not to another
block of its own: every block of a corpus is used once an epoch, so replacing one by another would gain nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from parrot_dist.data.plan import Rows

BLOCK_BYTES = 256 * 2**10
HEADER = struct.Struct("<16s2QI")  # corpus, number of the block, its length, checksum of all this and the block
SLOT_BYTES = HEADER.size + BLOCK_BYTES

log = logging.getLogger(__name__)


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
        numbers = range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        try:
            file = self._open()
        except OSError as error:
            self._give_up(error)
            return load(begin, end)
        try:
            blocks = {number: self._get(file, int(self.first[shard]) + number) for number in numbers}
            missing = [number for number, block in blocks.items() if block is None]
            for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if missing else []:
                blocks |= self._load(file, shard, int(run[0]), int(run[-1]) + 1, load)
        finally:
            os.close(file)
        data = b"".join(block for block in blocks.values() if block is not None)
        return data[begin - numbers[0] * BLOCK_BYTES :][: end - begin]

    def _load(
        self, file: int, shard: int, first: int, stop: int, load: Callable[[int, int], bytes]
    ) -> dict[int, bytes | None]:
        """The blocks [first, stop) of a shard, which are kept as well."""
        edges = [min(number * BLOCK_BYTES, int(self.shard_sizes[shard])) for number in range(first, stop + 1)]
        data = load(edges[0], edges[-1])
        blocks = [data[begin - edges[0] : end - edges[0]] for begin, end in pairwise(edges)]
        for number, block in enumerate(blocks, first):
            try:
                self._put(file, int(self.first[shard]) + number, block)
            except OSError as error:
                self._give_up(error)
        return dict(enumerate(blocks, first))

    def _open(self) -> int:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(file).st_size > self.slots * SLOT_BYTES:  # from when the bound was higher
            os.ftruncate(file, self.slots * SLOT_BYTES)
        return file

    def _get(self, file: int, number: int) -> bytes | None:
        slot = os.pread(file, SLOT_BYTES, number % self.slots * SLOT_BYTES)
        if len(slot) < HEADER.size or HEADER.unpack_from(slot)[:2] != (self.corpus, number):
            return None
        length, checksum = HEADER.unpack_from(slot)[2:]
        block = slot[HEADER.size : HEADER.size + length]
        return block if self._checksum(number, block) == checksum else None

    def _put(self, file: int, number: int, block: bytes) -> None:
        if self.off:
            return
        place = number % self.slots * SLOT_BYTES
        there = os.pread(file, HEADER.size, place)
        if len(there) == HEADER.size and there[:16] == self.corpus and HEADER.unpack(there)[1] != number:
            return
        slot = HEADER.pack(self.corpus, number, len(block), self._checksum(number, block)) + block
        if os.pwrite(file, slot, place) < len(slot):
            raise OSError("the disk is full")

    def _checksum(self, number: int, block: bytes) -> int:
        return zlib.crc32(block, zlib.crc32(struct.pack("<16s2Q", self.corpus, number, len(block))))

    def _give_up(self, error: OSError) -> None:
        if not self.off:
            log.warning("%s: the node cache is off from here on (%s)", self.path, error)
        self.off = True
