"""From a plan to waveforms: ranged reads of shards ahead of use, tar members, decoding."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

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


Sample = TypeVar("Sample", covariant=True)


class Source(Protocol[Sample]):
    """Where samples come from: their places, their bytes, and what the bytes mean. Picklable; opens nothing itself."""

    @property
    def layout(self) -> Layout:
        """Where in the shards each row of the index lies."""

    @property
    def read_ahead(self) -> int | None:
        """How many samples of a lane to read at a time; None: a window, whose samples lie side by side."""

    @property
    def in_memory(self) -> bool:
        """Whether `decode` has everything at hand: nothing is read, and no process of its own is worth while."""

    def read(self, rows: Rows) -> dict[int, bytes]:
        """Row -> its bytes."""

    def decode(self, row: int, data: bytes) -> Sample | Skipped:
        """The sample in these bytes."""


@dataclass(frozen=True)
class Corpus:
    """The shards of a corpus, as a source of utterances, which are cut after `max_samples`."""

    url: str
    shards: tuple[str, ...]
    layout: Layout
    keys: NDArray[Any]
    max_samples: int
    read_ahead = None
    in_memory = False

    @classmethod
    def of(cls, url: str, index: Index, max_seconds: float) -> Corpus:
        """The corpus at `url` by its index."""
        shards, numbers = np.unique(index.shard, return_inverse=True)
        layout = Layout(numbers.astype(np.int64), index.offset, index.size)
        return cls(url, tuple(shards.tolist()), layout, index.key, int(max_seconds * SAMPLE_RATE))

    def read(self, rows: Rows) -> dict[int, bytes]:
        """The bytes of samples, read in runs, see `fetch`."""
        return fetch(self.url, self.shards, self.layout, rows)

    def decode(self, row: int, data: bytes) -> Utterance | Skipped:
        """The utterance in the tar bytes of a sample."""
        key = str(self.keys[row])
        try:
            waveform = read_sample(data, key)
        except BrokenSample as broken:
            return Skipped(row, key, broken.reason)
        return Utterance(row, waveform[: self.max_samples])


class RankStream(IterableDataset[list[Sample | Skipped]]):
    """The share of one rank in an epoch: one list of samples a step, from step `start` on.

    Picklable, opens nothing before it is iterated (s3fs#914), and splits its lanes over the data workers that
    iterate it: each yields its part of every step.
    """

    def __init__(self, source: Source[Sample], plan: EpochPlan, lanes: range, start: int = 0) -> None:
        super().__init__()
        self.source, self.plan, self.lanes, self.start = source, plan, lanes, start

    def __iter__(self) -> Iterator[list[Sample | Skipped]]:
        worker = get_worker_info()
        mine = rank_lanes(len(self.lanes), worker.id, worker.num_workers) if worker else range(len(self.lanes))
        lanes = [self.lanes[i] for i in mine]
        with ThreadPoolExecutor(READERS) as pool:
            readers = {lane: self._read_lane(lane, pool) for lane in lanes}
            for step in range(self.start, self.plan.steps):
                yield [item for lane in lanes for item in islice(readers[lane], len(self.plan.lane_step(lane, step)))]

    def _read_lane(self, lane: int, pool: ThreadPoolExecutor) -> Iterator[Sample | Skipped]:
        rows, window = self.plan.lane(lane), self.source.read_ahead or self.plan.window
        done = self.start * self.plan.lane_rows
        if self.source.in_memory:
            yield from (self.source.decode(row, b"") for row in rows[done:].tolist())
            return
        cuts = [(max(a, done), min(a + window, len(rows))) for a in range(0, len(rows), window) if a + window > done]
        ahead: Future[dict[int, bytes]] | None = None
        for number, (begin, end) in enumerate(cuts):
            current = ahead or pool.submit(self.source.read, rows[begin:end])
            following = cuts[number + 1 : number + 2]
            ahead = pool.submit(self.source.read, rows[slice(*following[0])]) if following else None
            samples = current.result()
            for row in rows[begin:end].tolist():
                yield self.source.decode(row, samples.pop(row))


def fetch(url: str, shards: tuple[str, ...], layout: Layout, rows: Rows) -> dict[int, bytes]:
    """Row -> the bytes of its sample, read chunk by chunk.

    Raises:
        OSError: a shard is shorter than its index says, or the store failed for good.
        UserError: a shard is not there, or access is refused.
    """
    found: dict[int, bytes] = {}
    if not len(rows):
        return found
    ordered, starts = find_chunks(layout, rows)
    for chunk in np.split(ordered, starts[1:]):
        begin = layout.offset[chunk]
        end = begin + layout.size[chunk]
        shard = storage.join(url, shards[layout.shard[chunk[0]]])
        data = storage.read_bytes(shard, int(begin[0]), int(end.max()))
        for row, a, b in zip(chunk.tolist(), begin - begin[0], end - begin[0], strict=True):
            found[row] = data[a:b]
    return found


def iterate(stream: RankStream[Sample], workers: int) -> Iterator[list[Sample | Skipped]]:
    """One list of samples a step, decoded by `workers` processes (0: in this one, between steps)."""
    workers = 0 if stream.source.in_memory else min(workers, len(stream.lanes))
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
