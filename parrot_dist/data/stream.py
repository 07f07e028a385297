"""From a plan to waveforms: ranged reads of shards ahead of use, tar members, decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from parrot_dist import storage
from parrot_dist.data.audio import SAMPLE_RATE, Memory, Waveform, empty
from parrot_dist.data.augmentation import Augmentation
from parrot_dist.data.index import BrokenSample, Index, read_sample
from parrot_dist.data.nodecache import NodeCache
from parrot_dist.data.plan import EpochPlan, Layout, Rows, rank_lanes, spans
from parrot_dist.errors import UserError

READERS = 8  # concurrent requests of one process
PREFETCH = 4  # parts of a step that a data worker decodes ahead
HEAD = 1 / 32  # of a window's bytes: what may be read twice so that the first step need not wait for a whole window


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


class Part(NamedTuple):
    """What some lanes give to a step: rows, and the bytes of each."""

    step: int
    lanes: list[int]
    samples: list[tuple[int, bytes]]


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
        """Whether `decode` has everything at hand: `read` is not called, and no process of its own is worth while."""

    def read(self, rows: Rows) -> dict[int, bytes]:
        """Row -> its bytes."""

    def decode(self, row: int, data: bytes, memory: Memory = empty) -> Sample | Skipped:
        """The sample in these bytes; a waveform lies in what `memory` gave for it, if that saves a copy."""


@dataclass(frozen=True)
class Corpus:
    """The shards of a corpus, as a source of utterances, which are cut after `max_samples`.

    With `cache`, what was read is kept on the disk of the node.
    """

    url: str
    shards: tuple[str, ...]
    layout: Layout
    keys: NDArray[Any]
    max_samples: int
    cache: NodeCache | None = None
    read_ahead = None
    in_memory = False

    @classmethod
    def of(cls, url: str, index: Index, max_seconds: float) -> Corpus:
        """The corpus at `url` by its index."""
        shards, numbers = np.unique(index.shard, return_inverse=True)
        layout = Layout(numbers.astype(np.int64), index.offset, index.size)
        return cls(url, tuple(shards.tolist()), layout, index.key, int(max_seconds * SAMPLE_RATE))

    def kept_on_node(self, path: Path, size: int, index: Index) -> Corpus:
        """This corpus, of `index`, with a cache of at most `size` bytes in the file at `path`."""
        sizes = np.array([index.shard_sizes[shard] for shard in self.shards], np.int64)
        return replace(self, cache=NodeCache(path, size, f"{self.url} {index.digest}", sizes))

    def read(self, rows: Rows) -> dict[int, bytes]:
        """The bytes of samples, read in runs, see `fetch`."""
        return fetch(self.url, self.shards, self.layout, rows, self.cache)

    def decode(self, row: int, data: bytes, memory: Memory = empty) -> Utterance | Skipped:
        """The utterance in the tar bytes of a sample."""
        key = str(self.keys[row])
        try:  # of what is cut, the rest would only take room
            waveform = read_sample(data, key, lambda n: memory(n) if n <= self.max_samples else empty(n))
        except BrokenSample as broken:
            return Skipped(row, key, broken.reason)
        return Utterance(row, waveform[: self.max_samples])


class RankStream(IterableDataset[list[Sample | Skipped]]):
    """The share of one rank in an epoch: one list of samples a step, from step `start` on.

    Picklable, opens nothing before it is iterated (s3fs#914), and splits its lanes over the data workers that
    iterate it: each yields its part of every step.
    """

    def __init__(
        self,
        source: Source[Sample],
        plan: EpochPlan,
        lanes: range,
        start: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self.source, self.plan, self.lanes, self.start = source, plan, lanes, start
        self.augmentation = augmentation

    def __iter__(self) -> Iterator[list[Sample | Skipped]]:
        return (self.decode(part) for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """What the steps consist of, as it was read."""
        worker = get_worker_info()
        mine = rank_lanes(len(self.lanes), worker.id, worker.num_workers) if worker else range(len(self.lanes))
        lanes = [self.lanes[i] for i in mine]
        pool = ThreadPoolExecutor(READERS)
        try:
            samples = [self._samples(pool, lane) for lane in lanes]
            for step in range(self.start, self.plan.steps):
                counts = [len(self.plan.lane_step(lane, step)) for lane in lanes]
                taken = [islice(lane, count) for lane, count in zip(samples, counts, strict=True)]
                yield Part(step, lanes, [sample for lane in taken for sample in lane])
        finally:
            pool.shutdown(cancel_futures=True)

    def decode(self, part: Part, memory: Memory = empty) -> list[Sample | Skipped]:
        """The samples of a part; `memory`: see `Source.decode`."""
        if self.augmentation is not None:  # what is changed lies elsewhere anyway
            return self._augment([self.source.decode(row, data) for row, data in part.samples], part)
        return [self.source.decode(row, data, memory) for row, data in part.samples]

    def _samples(self, pool: Executor, lane: int) -> Iterator[tuple[int, bytes]]:
        """Row and bytes of the samples of a lane from step `start` on."""
        if self.source.in_memory:
            return ((row, b"") for row in self.plan.lane(lane)[self.start * self.plan.lane_rows :].tolist())
        return read_ahead(pool, self.source.read, self._pieces(lane))

    def _pieces(self, lane: int) -> list[Rows]:
        """What is read at a time of the samples of a lane from step `start` on."""
        rows, window = self.plan.lane(lane), self.source.read_ahead or self.plan.window
        done, head = self.start * self.plan.lane_rows, self.plan.lane_rows
        pieces = [rows[max(a, done) : a + window] for a in range(0, len(rows), window) if a + window > done]
        if pieces and self._span(pieces[0][:head]) <= HEAD * self.source.layout.size[pieces[0]].sum():
            pieces[:1] = [pieces[0][:head], pieces[0][head:]]
        return pieces

    def _span(self, rows: Rows) -> int:
        """Bytes that reading these takes."""
        return sum(end - begin for _, begin, end in spans(self.source.layout, rows))

    def _augment(self, items: list[Any], part: Part) -> list[Any]:
        assert self.augmentation is not None
        return [
            replace(item, waveform=self.augmentation.apply(item.waveform, part.step, draw))
            if isinstance(item, Utterance)
            else item
            for item, draw in zip(items, self.plan.draws(part.step, part.lanes).tolist(), strict=True)
        ]


def read_ahead(
    pool: Executor, read: Callable[[Rows], dict[int, bytes]], pieces: list[Rows]
) -> Iterator[tuple[int, bytes]]:
    """Row and bytes of every sample in `pieces`; the first is read from now on, each other while the last is in use."""
    reads = (pool.submit(read, piece) for piece in pieces)
    ahead = deque(islice(reads, 1))

    def take() -> Iterator[tuple[int, bytes]]:
        for piece in pieces:
            samples = ahead.popleft().result()
            ahead.extend(islice(reads, 1))
            for row in piece.tolist():
                yield row, samples[row]

    return take()


def fetch(
    url: str, shards: tuple[str, ...], layout: Layout, rows: Rows, cache: NodeCache | None = None
) -> dict[int, bytes]:
    """Row -> the bytes of its sample, read chunk by chunk.

    Raises:
        OSError: a shard is shorter than its index says, or the store failed for good.
        UserError: a shard is not there, or access is refused.
    """
    found: dict[int, bytes] = {}
    for chunk, begin, end in spans(layout, rows):
        shard = int(layout.shard[chunk[0]])
        load = partial(storage.read_bytes, storage.join(url, shards[shard]))
        data = cache.read(shard, begin, end, load) if cache else load(begin, end)
        starts = layout.offset[chunk] - begin
        for row, a, b in zip(chunk.tolist(), starts.tolist(), (starts + layout.size[chunk]).tolist(), strict=True):
            found[row] = data[a:b]
    return found


def iterate(stream: RankStream[Sample], workers: int) -> Iterator[list[Sample | Skipped]]:
    """One list of samples a step, decoded by `workers` processes (0: in this one, between steps).

    Its waveforms last until the next step is asked for: those of data workers lie in memory that is used again.
    """
    workers = 0 if stream.source.in_memory else min(workers, len(stream.lanes))
    if workers == 0:
        yield from stream
        return
    # forkserver: forking a process that has run S3 clients and thread pools deadlocks (s3fs#914). It imports once where
    # the data workers of every epoch would take seconds to.
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    loader = DataLoader(
        _Parcels(stream),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        prefetch_factor=PREFETCH,
    )
    parts = _unpack(loader)  # the workers in turn: every `workers` parts are one step, in lane order
    for first in parts:
        yield first + [item for part in islice(parts, workers - 1) for item in part]


class _Sent(NamedTuple):
    """An utterance on its way between processes: its row, and where in shared memory its waveform begins."""

    row: int
    begin: int
    samples: int


@dataclass(frozen=True)
class _Parcel:
    """A part of a step on its way between processes: the waveforms lie in shared memory number `place`.

    That is `memory` from now on, or where it is None, the one that the parcel before at this place brought.
    """

    items: list[Any]
    place: int
    memory: Tensor | None


class _Room:
    """Shared memory for the waveforms of a part of a step.

    They are decoded into it; what lies elsewhere, since it was changed or found no room, is copied in.
    """

    def __init__(self) -> None:
        self._grow(0)

    def _grow(self, samples: int) -> None:
        self.shared = torch.zeros(samples).share_memory_()  # type: ignore[no-untyped-call]
        self._memory: Waveform = self.shared.numpy()
        self.clear()

    def clear(self) -> None:
        """What is here is not needed any more."""
        self._used = 0

    def take(self, samples: int) -> Waveform:
        """Memory for a waveform, here if there is room."""
        begin, end = self._used, self._used + samples
        if end > len(self._memory):
            return empty(samples)
        self._used = end
        return self._memory[begin:end]

    def bring(self, waves: list[Waveform]) -> list[int]:
        """Where each of the waveforms, from now on, begins here."""
        places = [self._find(wave) for wave in waves]
        away = [i for i, place in enumerate(places) if place is None]
        needed = self._used + sum(len(waves[i]) for i in away)
        if needed > len(self._memory):
            self._grow(needed + needed // 4)
            away = list(range(len(waves)))
        for i in away:
            places[i] = self._used
            self.take(len(waves[i]))[:] = waves[i]
        return [place for place in places if place is not None]

    def _find(self, wave: Waveform) -> int | None:
        place = (wave.ctypes.data - self._memory.ctypes.data) // wave.itemsize
        return place if 0 <= place < len(self._memory) else None


class _Parcels(IterableDataset[_Parcel | UserError]):
    """The steps of a stream; a message for the user as well: raised, it would leave its process as a traceback.

    A data worker uses PREFETCH + 1 places in turn: new memory, whose pages the system has to clear, for every parcel
    took as long as decoding. A parcel is there until its loader is asked for the next one of the same worker: a loader
    asks a worker for a parcel only once it has the one PREFETCH before. That holds as long as no worker ends before the
    others, see `_Unending`.
    """

    def __init__(self, stream: RankStream[Any]) -> None:
        super().__init__()
        self.stream = stream

    def __iter__(self) -> Iterator[_Parcel | UserError]:
        return _Unending(self._pack())

    def _pack(self) -> Iterator[_Parcel]:
        worker = get_worker_info()
        first = worker.id * (PREFETCH + 1) if worker else 0
        rooms = [_Room() for _ in range(PREFETCH + 1)]
        for number, part in enumerate(self.stream.parts()):
            place = number % len(rooms)
            room = rooms[place]
            room.clear()
            memory, items = room.shared, self.stream.decode(part, room.take)
            begins = iter(room.bring([item.waveform for item in items if isinstance(item, Utterance)]))
            sent = [
                _Sent(item.row, next(begins), len(item.waveform)) if isinstance(item, Utterance) else item
                for item in items
            ]
            yield _Parcel(sent, first + place, None if room.shared is memory else room.shared)


class _Unending(Iterator[_Parcel | UserError]):
    """Parcels, and after a failure that failure for ever, a message for the user as a parcel.

    A generator would end with it, and a loader gives the turns of a worker that has ended to the others: these would
    use their places again while steps from before the failure still lie there.
    """

    def __init__(self, parcels: Iterator[_Parcel]) -> None:
        self._parcels = parcels
        self._failure: Exception | None = None

    def __next__(self) -> _Parcel | UserError:
        if self._failure is None:
            try:
                return next(self._parcels)
            except StopIteration:
                raise
            except Exception as failure:
                self._failure = failure
        if isinstance(self._failure, UserError):
            return self._failure
        raise self._failure


def _unpack(parcels: Iterable[_Parcel | UserError]) -> Iterator[list[Any]]:
    """The samples of every parcel, which last as long as it does."""
    memory: dict[int, NDArray[np.float32]] = {}
    for parcel in parcels:
        if isinstance(parcel, UserError):
            raise parcel
        if parcel.memory is not None:
            memory[parcel.place] = parcel.memory.numpy()
        waves = memory.get(parcel.place, empty(0))
        yield [
            Utterance(item.row, waves[item.begin : item.begin + item.samples]) if isinstance(item, _Sent) else item
            for item in parcel.items
        ]
