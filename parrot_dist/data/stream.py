"""From a plan to waveforms: ranged reads of shards ahead of use, tar members, decoding."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from parrot_dist import storage
from parrot_dist.data.audio import SAMPLE_RATE
from parrot_dist.data.index import BrokenSample, Index, read_sample
from parrot_dist.data.plan import EpochPlan, Layout, Rows, find_chunks, rank_lanes

READERS = 8  # concurrent requests of one process


@dataclass(frozen=True)
class Utterance:
    """A decoded sample: its row in the index and its waveform, (samples,) float32 at 16 kHz."""

    row: int
    waveform: NDArray[np.float32]


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used, and why."""

    row: int
    key: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """What reading samples takes: where the shards are, and where in them each row of the index lies."""

    url: str
    shards: tuple[str, ...]
    layout: Layout
    keys: NDArray[Any]

    @classmethod
    def of(cls, url: str, index: Index) -> Corpus:
        shards, numbers = np.unique(index.shard, return_inverse=True)
        layout = Layout(numbers.astype(np.int64), index.offset, index.size)
        return cls(url, tuple(shards.tolist()), layout, index.key)


class RankStream(IterableDataset[list[Utterance | Skipped]]):
    """The share of one rank in an epoch: one list of utterances a step, from step `start` on.

    Picklable, opens nothing before it is iterated (s3fs#914), and splits its lanes over the data workers that
    iterate it: each yields its part of every step.
    """

    def __init__(self, corpus: Corpus, plan: EpochPlan, lanes: range, max_seconds: float, start: int = 0) -> None:
        super().__init__()
        self.corpus, self.plan, self.lanes, self.start = corpus, plan, lanes, start
        self.max_samples = int(max_seconds * SAMPLE_RATE)

    def __iter__(self) -> Iterator[list[Utterance | Skipped]]:
        worker = get_worker_info()
        mine = rank_lanes(len(self.lanes), worker.id, worker.num_workers) if worker else range(len(self.lanes))
        lanes = [self.lanes[i] for i in mine]
        with ThreadPoolExecutor(READERS) as pool:
            readers = {lane: self._read_lane(lane, pool) for lane in lanes}
            for step in range(self.start, self.plan.steps):
                yield [item for lane in lanes for item in islice(readers[lane], len(self.plan.lane_step(lane, step)))]

    def _read_lane(self, lane: int, pool: ThreadPoolExecutor) -> Iterator[Utterance | Skipped]:
        rows, window = self.plan.lane(lane), self.plan.window
        done = self.start * self.plan.lane_rows
        # Windows are cut from the lane's beginning, wherever reading starts: they are part of the order.
        cuts = [(max(a, done), min(a + window, len(rows))) for a in range(0, len(rows), window) if a + window > done]
        ahead: Future[dict[int, bytes]] | None = None
        for number, (begin, end) in enumerate(cuts):
            current = ahead or pool.submit(fetch, self.corpus, rows[begin:end])
            following = cuts[number + 1 : number + 2]
            ahead = pool.submit(fetch, self.corpus, rows[slice(*following[0])]) if following else None
            members = current.result()
            for row in rows[begin:end].tolist():
                yield self._decode(row, members.pop(row))

    def _decode(self, row: int, data: bytes) -> Utterance | Skipped:
        key = str(self.corpus.keys[row])
        try:
            waveform = read_sample(data, key)
        except BrokenSample as broken:
            return Skipped(row, key, broken.reason)
        return Utterance(row, waveform[: self.max_samples])


def fetch(corpus: Corpus, rows: Rows) -> dict[int, bytes]:
    """Row -> the bytes of its sample, read chunk by chunk.

    Raises:
        OSError: a shard is shorter than its index says, or the store failed for good.
        UserError: a shard is not there, or access is refused.
    """
    ordered, starts = find_chunks(corpus.layout, rows)
    found: dict[int, bytes] = {}
    for chunk in np.split(ordered, starts[1:]):
        begin = corpus.layout.offset[chunk]
        end = begin + corpus.layout.size[chunk]
        shard = storage.join(corpus.url, corpus.shards[corpus.layout.shard[chunk[0]]])
        data = storage.read_bytes(shard, int(begin[0]), int(end.max()))
        for row, a, b in zip(chunk.tolist(), begin - begin[0], end - begin[0], strict=True):
            found[row] = data[a:b]
    return found


def iterate(stream: RankStream, workers: int) -> Iterator[list[Utterance | Skipped]]:
    """One list of utterances a step, decoded by `workers` processes (0: in this one, between steps)."""
    workers = min(workers, len(stream.lanes))
    if workers == 0:
        yield from stream
        return
    # forkserver: forking a process that has run S3 clients and thread pools deadlocks (s3fs#914).
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context="forkserver", prefetch_factor=4
    )
    parts = iter(loader)  # the workers in turn, so every `workers` parts are one step, in lane order
    for first in parts:
        yield first + [item for part in islice(parts, workers - 1) for item in part]
