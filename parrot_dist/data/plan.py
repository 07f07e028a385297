"""Which utterance is used on which step: pure functions of (index, seed, epoch, global batch), never of the cluster.

An epoch is laid out as L lanes. Runs of samples that lie side by side in a shard (chunks) are put in a random order,
the sequence is cut into L lanes of equal length, and every lane is shuffled within windows. Step t takes the next
batch_size / L samples of every lane. A rank serves a contiguous share of the lanes, so
- the global batches are the same for every number of ranks, and their rows arrive in rank order,
- a sample's bytes are read once an epoch, in runs, by the one rank that serves its lane,
- a corpus with fewer shards than ranks still feeds them all,
- resuming at step t needs t and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

CHUNK_BYTES = 4 * 2**20  # long enough for an object store to stream, short enough to mix speakers
GAP_BYTES = 64 * 2**10  # reading over a smaller gap is cheaper than another request


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


def rank_lanes(lanes: int, rank: int, world_size: int) -> range:
    """The lanes that `rank` serves: a contiguous share, equal when `world_size` divides `lanes`."""
    return range(rank * lanes // world_size, (rank + 1) * lanes // world_size)


def shuffled_epoch(
    layout: Layout, rows: Rows, *, seed: int, epoch: int, lanes: int, batch_size: int, window: int, drop_last: bool
) -> EpochPlan:
    """The plan of training epoch `epoch` over the samples `rows`: each exactly once (but for `drop_last`)."""
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    rows, starts = find_chunks(layout, rows)
    order = _shuffle_chunks(rows, starts, rng)
    return EpochPlan(_shuffle_windows(order, lanes, window, rng), lanes, batch_size, window, drop_last)


def sequential_epoch(layout: Layout, rows: Rows, *, lanes: int, batch_size: int, window: int) -> EpochPlan:
    """The plan of an evaluation over the samples `rows`: each exactly once, in the order of the shards."""
    rows, _ = find_chunks(layout, rows)
    return EpochPlan(rows, lanes, batch_size, window)


def find_chunks(layout: Layout, rows: Rows) -> tuple[Rows, Rows]:
    """`rows` in the order of the shards, and where in it a new chunk begins.

    A chunk is a run of at most about CHUNK_BYTES in one shard without a gap above GAP_BYTES.
    """
    rows = rows[np.lexsort((layout.offset[rows], layout.shard[rows]))]
    if not len(rows):
        return rows, np.zeros(0, np.int64)
    shard, begin = layout.shard[rows], layout.offset[rows]
    end = begin + layout.size[rows]
    apart = np.ones(len(rows), bool)
    apart[1:] = (shard[1:] != shard[:-1]) | (begin[1:] - end[:-1] > GAP_BYTES)
    run_begin = begin[np.maximum.accumulate(np.where(apart, np.arange(len(rows)), 0))]
    piece = (begin - run_begin) // CHUNK_BYTES
    apart[1:] |= piece[1:] != piece[:-1]
    return rows, np.flatnonzero(apart)


def _shuffle_chunks(rows: Rows, starts: Rows, rng: np.random.Generator) -> Rows:
    place = np.empty(len(starts), np.int64)
    place[rng.permutation(len(starts))] = np.arange(len(starts))
    lengths = np.diff(np.append(starts, len(rows)))
    return rows[np.argsort(np.repeat(place, lengths), kind="stable")]


def _shuffle_windows(order: Rows, lanes: int, window: int, rng: np.random.Generator) -> Rows:
    n = len(order)
    bounds = np.arange(lanes + 1) * n // lanes
    lengths = np.diff(bounds)
    in_lane = np.arange(n) - np.repeat(bounds[:-1], lengths)
    lane = np.repeat(np.arange(lanes), lengths)
    return order[np.lexsort((rng.random(n), in_lane // window, lane))]
