"""The cache of a node: what was read once is not read again, within its bound, whoever writes and whoever dies."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from parrot_dist.data.nodecache import BLOCK_BYTES, SECTOR_BYTES, SLOT_BYTES, NodeCache
from tests.waiting import wait_until

SIZES = np.array([5 * BLOCK_BYTES + 17, 3 * BLOCK_BYTES, 100])
BLOCKS = 6 + 3 + 1


def content(shard: int) -> bytes:
    return np.random.default_rng(shard).bytes(int(SIZES[shard]))


SHARDS = [content(shard) for shard in range(len(SIZES))]


class Store:
    """The shards, and how many bytes were read of them."""

    def __init__(self) -> None:
        self.read = 0

    def load(self, shard: int) -> Callable[[int, int], bytes]:
        def load(begin: int, end: int) -> bytes:
            assert 0 <= begin < end <= SIZES[shard]
            self.read += end - begin
            return SHARDS[shard][begin:end]

        return load


def read_all(cache: NodeCache, seed: int = 0) -> int:
    """Read every byte through the cache, in ranges as of tar members; how many of them the store had to give."""
    store, rng = Store(), np.random.default_rng(seed)
    for shard in rng.permutation(len(SIZES)).tolist():
        inner = rng.integers(0, -(-SIZES[shard] // SECTOR_BYTES), 4) * SECTOR_BYTES
        for begin, end in rng.permutation(list(pairwise(sorted({0, int(SIZES[shard]), *inner.tolist()})))).tolist():
            assert cache.read(shard, begin, end, store.load(shard)) == SHARDS[shard][begin:end]
    return store.read


def make(folder: Path, slots: int = BLOCKS, corpus: str = "a") -> NodeCache:
    return NodeCache(folder / "new" / "cache", slots * SLOT_BYTES, corpus, SIZES)


def test_what_was_read_once_is_not_read_again_by_anybody_on_the_node(tmp_path: Path) -> None:
    assert read_all(make(tmp_path)) == SIZES.sum()
    assert read_all(make(tmp_path), seed=1) == 0


@pytest.mark.parametrize("slots", [1, 4, 7])
def test_the_bound_holds_and_as_much_as_fits_is_kept(tmp_path: Path, slots: int) -> None:
    cache = make(tmp_path, slots)
    for seed in range(3):
        read_all(cache, seed)
        assert cache.path.stat().st_size <= slots * SLOT_BYTES
    store = Store()
    for shard, size in enumerate(SIZES.tolist()):
        cache.read(shard, 0, size, store.load(shard))
    assert store.read <= (BLOCKS - slots) * BLOCK_BYTES


def test_another_corpus_takes_the_place_of_the_last(tmp_path: Path) -> None:
    read_all(make(tmp_path))
    assert read_all(make(tmp_path, corpus="b")) == SIZES.sum()
    assert read_all(make(tmp_path, corpus="b")) == 0
    assert read_all(make(tmp_path)) == SIZES.sum()


def test_a_lower_bound_shrinks_the_file(tmp_path: Path) -> None:
    read_all(make(tmp_path))
    read_all(make(tmp_path, slots=2))
    assert make(tmp_path).path.stat().st_size <= 2 * SLOT_BYTES


def test_damage_is_read_again(tmp_path: Path) -> None:
    cache = make(tmp_path)
    read_all(cache)
    with cache.path.open("r+b") as file:
        file.seek(3 * SLOT_BYTES + 1000)
        file.write(b"damage")
        file.truncate(7 * SLOT_BYTES + 500)
    assert 0 < read_all(cache) < SIZES.sum()
    assert read_all(cache) == 0


def fill_for_ever(folder: Path, corpus: str) -> None:
    while True:
        read_all(make(folder, slots=4, corpus=corpus))


def test_processes_that_write_at_once_and_are_killed_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=fill_for_ever, args=(tmp_path, corpus)) for corpus in "ab"]
    for writer in writers:
        writer.start()
    try:
        wait_until((tmp_path / "new" / "cache").exists)
        for seed in range(10):
            read_all(make(tmp_path, slots=4, corpus="b"), seed)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    read_all(make(tmp_path, slots=4))


def test_a_full_disk_only_switches_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache = make(tmp_path)
    read_all(cache)
    read_all(cache)
    assert [record.getMessage() for record in caplog.records] == [
        f"{cache.path}: the node cache is off from here on ([Errno 28] No space left on device)"
    ]


def test_a_disk_that_fails_only_switches_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    read_all(make(tmp_path))
    monkeypatch.setattr(os, "pread", broken)
    cache = make(tmp_path)
    assert [read_all(cache), read_all(cache)] == [SIZES.sum()] * 2
    assert len(caplog.records) == 1


def test_ranges_that_end_anywhere_take_a_sector_more_at_most(tmp_path: Path) -> None:
    cache, store = make(tmp_path), Store()
    for begin, end in [(1, 2), (SECTOR_BYTES - 1, SECTOR_BYTES + 1), (5, int(SIZES[0]) - 3)]:
        assert cache.read(0, begin, end, store.load(0)) == SHARDS[0][begin:end]
    assert store.read <= SIZES[0] + 3 * SECTOR_BYTES


def test_nodes_that_share_a_corpus_read_every_byte_once(tmp_path: Path) -> None:
    """Each has a part of it, and the parts end anywhere."""
    store, size = Store(), int(SIZES[0])
    cuts = [0, 1, 3, 700, 701, 900, -(-size // SECTOR_BYTES)]
    for node, (begin, end) in enumerate(pairwise(min(cut * SECTOR_BYTES, size) for cut in cuts)):
        make(tmp_path / str(node)).read(0, begin, end, store.load(0))
    assert store.read == size


def test_a_place_that_cannot_be_used_only_switches_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "new").write_text("a file")
    assert read_all(make(tmp_path)) == SIZES.sum()
    assert len(caplog.records) == 1
