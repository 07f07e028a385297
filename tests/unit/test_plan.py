"""The order as properties, over random corpora, lanes, batches, worlds and epochs (contract 4)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.data.plan import (
    CHUNK_BYTES,
    GAP_BYTES,
    EpochPlan,
    Layout,
    find_chunks,
    rank_lanes,
    sequential_epoch,
    shuffled_epoch,
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, np.ndarray]:
    """A corpus of random shards, and some of its samples: a split leaves gaps between them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 300))
    shard = np.sort(rng.integers(0, draw(st.integers(1, 12)), n))
    size = rng.integers(1024, draw(st.sampled_from([4_096, 200_000, 3_000_000])), n)
    offset = np.concatenate([np.cumsum(size[shard == s]) - size[shard == s] for s in np.unique(shard)])
    rows = np.flatnonzero(rng.random(n) < draw(st.floats(0.2, 1)))
    return Layout(shard, offset, size), rng.permutation(rows)


@st.composite
def plans(draw: st.DrawFn, drop_last: bool = False) -> tuple[EpochPlan, np.ndarray]:
    layout, rows = draw(layouts())
    lanes = draw(st.integers(1, 16))
    plan = shuffled_epoch(
        layout,
        rows,
        seed=draw(st.integers(0, 2**31)),
        epoch=draw(st.integers(0, 50)),
        lanes=lanes,
        batch_size=lanes * draw(st.integers(1, 5)),
        window=draw(st.integers(1, 64)),
        drop_last=drop_last,
    )
    return plan, rows


@given(plans())
def test_every_sample_exactly_once(case: tuple[EpochPlan, np.ndarray]) -> None:
    plan, rows = case
    used = np.concatenate([plan.global_batch(step) for step in range(plan.steps)] or [rows[:0]])
    assert sorted(used) == sorted(rows)


@given(plans(drop_last=True))
def test_dropping_the_last_batch_leaves_full_batches_of_different_samples(case: tuple[EpochPlan, np.ndarray]) -> None:
    plan, rows = case
    batches = [plan.global_batch(step) for step in range(plan.steps)]
    assert all(len(batch) == plan.batch_size for batch in batches)
    used = np.concatenate(batches or [rows[:0]])
    assert len(set(used)) == len(used)
    assert len(rows) - len(used) < plan.batch_size + plan.lanes


@given(plans(), st.integers(1, 16), st.integers(0, 10_000))
def test_ranks_together_see_the_global_batch_in_order_from_any_step(
    case: tuple[EpochPlan, np.ndarray], world: int, start: int
) -> None:
    plan, _ = case
    world = min(world, plan.lanes)
    for step in range(start % (plan.steps + 1), plan.steps):
        parts = [plan.lane_step(lane, step) for rank in range(world) for lane in rank_lanes(plan.lanes, rank, world)]
        assert np.array_equal(np.concatenate(parts), plan.global_batch(step))


@given(plans())
def test_only_the_end_of_an_epoch_has_smaller_batches(case: tuple[EpochPlan, np.ndarray]) -> None:
    plan, _ = case
    sizes = [len(plan.global_batch(step)) for step in range(plan.steps)]
    full = len(plan.order) // plan.lanes // plan.lane_rows
    assert sizes[:full] == [plan.batch_size] * full
    assert len(sizes) - full <= 1
    assert all(sizes)


@given(layouts(), st.integers(0, 2**31))
def test_the_order_is_a_function_of_its_arguments_and_not_of_how_samples_are_listed(
    case: tuple[Layout, np.ndarray], seed: int
) -> None:
    layout, rows = case
    settings = {"seed": seed, "lanes": 4, "batch_size": 8, "window": 16, "drop_last": False}
    first = shuffled_epoch(layout, rows, epoch=3, **settings)
    assert np.array_equal(first.order, shuffled_epoch(layout, rows[::-1], epoch=3, **settings).order)
    if len(rows) > 40:
        assert not np.array_equal(first.order, shuffled_epoch(layout, rows, epoch=4, **settings).order)


@given(layouts())
def test_chunks_are_runs_of_bytes_in_one_shard(case: tuple[Layout, np.ndarray]) -> None:
    layout, rows = case
    ordered, starts = find_chunks(layout, rows)
    assert sorted(ordered) == sorted(rows)
    for chunk in np.split(ordered, starts[1:]):
        begin, end = layout.offset[chunk], layout.offset[chunk] + layout.size[chunk]
        assert len(set(layout.shard[chunk])) <= 1
        assert (begin[1:] >= end[:-1]).all()
        assert (begin[1:] - end[:-1] <= GAP_BYTES).all()
        if len(chunk):
            assert begin[-1] - begin[0] <= CHUNK_BYTES + layout.size[chunk].max()


def test_an_epoch_of_a_contiguous_corpus_reads_few_chunks() -> None:
    size = np.full(4_000, 40_000)
    layout = Layout(np.repeat(np.arange(40), 100), np.tile(np.arange(100) * 40_000, 40), size)
    plan = shuffled_epoch(
        layout, np.arange(4_000), seed=0, epoch=0, lanes=16, batch_size=32, window=256, drop_last=False
    )
    requests = sum(len(find_chunks(layout, plan.lane(lane))[1]) for lane in range(16))
    assert requests < 40 * 2  # a shard is 4 MB, one chunk; lanes cut some in two


def test_neighbours_in_the_corpus_are_far_apart_in_an_epoch() -> None:
    size = np.full(8_000, 40_000)
    layout = Layout(np.repeat(np.arange(80), 100), np.tile(np.arange(100) * 40_000, 80), size)
    plan = shuffled_epoch(
        layout, np.arange(8_000), seed=0, epoch=0, lanes=16, batch_size=32, window=256, drop_last=False
    )
    order = np.concatenate([plan.global_batch(step) for step in range(plan.steps)])
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.1
    assert np.median(np.abs(np.diff(order))) > 0.5 * np.median(
        np.abs(np.diff(np.random.default_rng(0).permutation(8_000)))
    )


def test_an_evaluation_takes_the_samples_in_the_order_of_the_shards() -> None:
    layout = Layout(np.array([1, 0, 0, 1]), np.array([0, 10, 0, 5]), np.array([5, 5, 10, 5]))
    plan = sequential_epoch(layout, np.array([0, 1, 3]), lanes=1, batch_size=2, window=4)
    assert plan.order.tolist() == [1, 0, 3]
    assert plan.steps == 2
