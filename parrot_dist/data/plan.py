"""Which utterance is used on which step: pure functions of (index, seed, epoch, global batch), never of the cluster.

An epoch is laid out as L lanes. Runs of samples that lie side by side in a shard (chunks) are put in a random order,
the sequence is cut into L lanes of equal length, and every lane is shuffled within windows. Step t takes the next
batch_size / L samples of every lane. A rank serves a contiguous share of the lanes, so
- the global batches are the same for every number of ranks, and their rows arrive in rank order,
- a sample's bytes are read once an epoch, in runs, by the one rank that serves its lane,
- a corpus with fewer shards than ranks still feeds them all,
- resuming at step t needs t and nothing else.
With bucketing, the samples of a window are put in the order of their size, the steps that this makes are shuffled in
the same way in every lane, and so each global batch holds utterances of about one length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

CHUNK_BYTES = 4 * 2**20  # long enough for an object store to stream, short enough to mix speakers
WINDOW_BYTES = 16 * 2**20  # what a lane may hold of one window: bounds the memory of a rank whatever the samples are
GAP_BYTES = 64 * 2**10  # reading over a smaller gap is cheaper than another request
COPY = 2**32  # between the numbers that copies of a sample are drawn by; no index has as many rows


@dataclass(frozen=True)
class Layout:
    """Where samples lie: aligned arrays of shard number, byte offset and byte size, in any order."""

    shard: Rows
    offset: Rows
    size: Rows


@dataclass(frozen=True)
class EpochPlan:
    """One pass over some samples in global batches.

    Attributes:
        order: (n,) the samples (rows of the index), lane after lane.
        lanes: number of lanes L.
        batch_size: samples in a full global batch, a multiple of L.
        window: samples that are shuffled, hence fetched, together.
        drop_last: leave out the final steps whose batches are not full.
    """

    order: Rows
    lanes: int
    batch_size: int
    window: int
    drop_last: bool = False

    @property
    def steps(self) -> int:
        """Number of steps; the same on every rank."""
        shortest, longest = len(self.order) // self.lanes, -(-len(self.order) // self.lanes)
        return shortest // self.lane_rows if self.drop_last else -(-longest // self.lane_rows)

    @property
    def lane_rows(self) -> int:
        """Samples that every lane gives to a full batch."""
        return self.batch_size // self.lanes

    def lane(self, lane: int) -> Rows:
        """The samples of one lane in the order of their use."""
        n = len(self.order)
        return self.order[lane * n // self.lanes : (lane + 1) * n // self.lanes]

    def lane_step(self, lane: int, step: int) -> Rows:
        """The samples that `lane` gives to `step`."""
        return self.lane(lane)[step * self.lane_rows : (step + 1) * self.lane_rows]

    def global_batch(self, step: int) -> Rows:
        """All samples of `step`, in lane order, hence in rank order for any number of ranks."""
        return np.concatenate([self.lane_step(lane, step) for lane in range(self.lanes)])

    def draws(self, step: int, lanes: Iterable[int]) -> Rows:
        """For each sample that `lanes` give to `step`, a number by which to draw what is random about it.

        That is the sample itself, and another number for each time that it came before in the global batch: balanced
        sampling repeats rare ones, and copies that are alike in everything would teach nothing.
        """
        parts = [self.lane_step(lane, step) for lane in range(self.lanes)]
        batch = np.concatenate(parts)
        if len(set(batch.tolist())) < len(batch):
            order = np.argsort(batch, kind="stable")
            first = np.append(True, np.diff(batch[order]) > 0)
            copy = np.empty_like(batch)
            copy[order] = np.arange(len(batch)) - np.flatnonzero(first)[np.cumsum(first) - 1]
            parts = np.split(batch + copy * COPY, np.cumsum([len(part) for part in parts])[:-1])
        return np.concatenate([batch[:0], *(parts[lane] for lane in lanes)])


def rank_lanes(lanes: int, rank: int, world_size: int) -> range:
    """The lanes that `rank` serves: a contiguous share, equal when `world_size` divides `lanes`."""
    return range(rank * lanes // world_size, (rank + 1) * lanes // world_size)


def shuffled_epoch(
    layout: Layout,
    rows: Rows,
    *,
    seed: int,
    epoch: int,
    lanes: int,
    batch_size: int,
    window: int,
    drop_last: bool,
    lengths: Rows | None = None,
    labels: Rows | None = None,
) -> EpochPlan:
    """The plan of training epoch `epoch` over the samples `rows`: each exactly once (but for `drop_last`).

    With `lengths` of every row of the index, a global batch holds samples of about one length. With `labels`, the class
    of every row of the index, the epoch holds as many samples of each class, see `balance`.
    """
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    passes = [rows] if labels is None else balance(rows, labels, rng)
    order = _shuffle_chunks(*_join([find_chunks(layout, one) for one in passes]), rng)
    window = fit_window(layout.size[order], lanes, window, 1 if lengths is None else batch_size // lanes)
    plan = EpochPlan(_shuffle_windows(order, lanes, window, rng), lanes, batch_size, window, drop_last)
    return plan if lengths is None else _bucket(plan, lengths, rng)


def balance(rows: Rows, labels: Rows, rng: np.random.Generator) -> list[Rows]:
    """`len(rows)` samples with (to within one) as many of every class among them, as passes without repetition.

    No sample is used a second time in an epoch before all of its class were used once: of a class that is rarer than
    the mean every sample comes, some repeatedly; of one that is more frequent, an epoch leaves a random part out.
    """
    if not len(rows):
        return [rows]
    rows = rng.permutation(np.sort(rows))
    label = labels[rows]
    count = np.bincount(label)
    classes = np.flatnonzero(count)
    share = np.zeros_like(count)
    share[classes] = np.diff(np.arange(len(classes) + 1) * len(rows) // len(classes))
    rank = np.empty(len(rows), np.int64)  # of each row among those of its class
    rank[np.argsort(label.astype(np.int16), kind="stable")] = np.concatenate([np.arange(n) for n in count])
    passes = int((-(-share[classes] // count[classes])).max())
    return [np.sort(rows[rank + turn * count[label] < share[label]]) for turn in range(passes)]


def fit_window(sizes: Rows, lanes: int, window: int, unit: int = 1) -> int:
    """The largest of window, window / 2, window / 4, ... of which no lane holds more than WINDOW_BYTES (or one `unit`).

    Args:
        sizes: (n,) bytes of the samples, lane after lane.
        unit: samples that a window shall be a multiple of.
    """
    total = np.append(0, np.cumsum(sizes))
    while (window := max(unit, window // unit * unit)) > unit:
        starts, _ = _windows(len(sizes), lanes, window)
        if not len(starts) or np.diff(total[np.append(starts, len(sizes))]).max() <= WINDOW_BYTES:
            break
        window //= 2
    return window


def sequential_epoch(layout: Layout, rows: Rows, *, lanes: int, batch_size: int, window: int) -> EpochPlan:
    """The plan of an evaluation over the samples `rows`: each exactly once, in the order of the shards."""
    rows, _ = find_chunks(layout, rows)
    return EpochPlan(rows, lanes, batch_size, fit_window(layout.size[rows], lanes, window))


def find_chunks(layout: Layout, rows: Rows) -> tuple[Rows, Rows]:
    """`rows` in the order of the shards, and where in it a new chunk begins.

    A chunk is a run of at most about CHUNK_BYTES in one shard without a gap above GAP_BYTES.
    """
    if not len(rows):
        return rows, np.zeros(0, np.int64)
    shard, begin = layout.shard[rows], layout.offset[rows]
    if ((shard[1:] < shard[:-1]) | ((shard[1:] == shard[:-1]) & (begin[1:] < begin[:-1]))).any():
        order = np.lexsort((begin, shard))
        rows, shard, begin = rows[order], shard[order], begin[order]
    end = begin + layout.size[rows]
    apart = np.ones(len(rows), bool)
    apart[1:] = (shard[1:] != shard[:-1]) | (begin[1:] - end[:-1] > GAP_BYTES)
    run_begin = begin[np.maximum.accumulate(np.where(apart, np.arange(len(rows)), 0))]
    piece = (begin - run_begin) // CHUNK_BYTES
    apart[1:] |= piece[1:] != piece[:-1]
    return rows, np.flatnonzero(apart)


def spans(layout: Layout, rows: Rows) -> Iterator[tuple[Rows, int, int]]:
    """Each chunk of `rows`, and the bytes [begin, end) of its shard that reading it takes, gaps included."""
    rows, starts = find_chunks(layout, rows)
    for chunk in np.split(rows, starts[1:]) if len(rows) else []:
        yield chunk, int(layout.offset[chunk[0]]), int((layout.offset[chunk] + layout.size[chunk]).max())


def _join(passes: list[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    """Several rows with the starts of their chunks as one."""
    lengths = np.cumsum([0, *(len(rows) for rows, _ in passes)])
    starts = [begin + starts for begin, (_, starts) in zip(lengths, passes, strict=False)]
    return np.concatenate([rows for rows, _ in passes]), np.concatenate(starts)


def _shuffle_chunks(rows: Rows, starts: Rows, rng: np.random.Generator) -> Rows:
    place = np.empty(len(starts), np.int64)
    place[rng.permutation(len(starts))] = np.arange(len(starts))
    lengths = np.diff(np.append(starts, len(rows)))
    return rows[np.argsort(np.repeat(place, lengths), kind="stable")]


def _shuffle_windows(order: Rows, lanes: int, window: int, rng: np.random.Generator) -> Rows:
    _, number = _windows(len(order), lanes, window)
    return order[np.argsort(number + rng.random(len(order)), kind="stable")]


def _windows(n: int, lanes: int, window: int) -> tuple[Rows, Rows]:
    """Of n samples, lane after lane: where in it the windows begin, and the number of each sample's window."""
    bounds = np.arange(lanes + 1) * n // lanes
    in_lane = np.arange(n) - np.repeat(bounds[:-1], np.diff(bounds))
    first = in_lane % window == 0
    return np.flatnonzero(first), np.cumsum(first) - 1


def _bucket(plan: EpochPlan, lengths: Rows, rng: np.random.Generator) -> EpochPlan:
    """`plan`, whose windows are of whole steps, with every lane sorted by length within them, and their steps shuffled.

    The steps of all lanes move together, and a last step that is smaller in some lane stays the last.
    """
    steps = plan.window // plan.lane_rows
    full = len(plan.order) // plan.lanes // plan.lane_rows
    windows = np.array_split(np.arange(full), np.arange(steps, full, steps))
    place = np.concatenate([*map(rng.permutation, windows), np.arange(full, full + 2)])
    lanes = []
    for lane in map(plan.lane, range(plan.lanes)):
        step = np.arange(len(lane)) // plan.lane_rows
        window = np.minimum(step, full) // steps + (step >= full)
        lane = lane[np.lexsort((lengths[lane], window))]
        lanes.append(lane[np.argsort(place[step], kind="stable")])
    return replace(plan, order=np.concatenate(lanes))
