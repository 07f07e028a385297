"""The order as properties, over random corpora, lanes, batches, worlds and epochs (contract 4)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_dist.data.plan import (
    CHUNK_BYTES,
    COPY,
    GAP_BYTES,
    WINDOW_BYTES,
    EpochPlan,
    Layout,
    balance,
    find_chunks,
    fit_window,
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
def plans(draw: st.DrawFn, drop_last: bool = False, balanced: bool = False) -> tuple[EpochPlan, np.ndarray]:
    """An epoch over random samples, with bucketing or without."""
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
        lengths=layout.size if draw(st.booleans()) else None,
        labels=np.arange(len(layout.size)) ** 2 % 3 if balanced else None,
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


@given(st.one_of(plans(), plans(balanced=True)), st.integers(1, 16), st.integers(1, 4), st.integers(0, 10_000))
def test_ranks_and_their_data_workers_together_see_the_global_batch_in_order_from_any_step(
    case: tuple[EpochPlan, np.ndarray], world: int, workers: int, start: int
) -> None:
    plan, _ = case
    world = min(world, plan.lanes)
    shares = [rank_lanes(plan.lanes, rank, world) for rank in range(world)]
    lanes = [share[i] for share in shares for worker in range(workers) for i in rank_lanes(len(share), worker, workers)]
    for step in range(start % (plan.steps + 1), plan.steps):
        assert np.array_equal(np.concatenate([plan.lane_step(lane, step) for lane in lanes]), plan.global_batch(step))


@given(plans(), st.lists(st.tuples(st.integers(1, 16), st.integers(1, 20)), max_size=6))
def test_an_epoch_interrupted_anywhere_and_resumed_on_other_worlds_uses_every_sample_once(
    case: tuple[EpochPlan, np.ndarray], parts: list[tuple[int, int]]
) -> None:
    plan, rows = case
    used, step = [rows[:0]], 0
    for world, steps in [*parts, (1, plan.steps)]:
        world, stop = min(world, plan.lanes), min(step + steps, plan.steps)
        for rank in range(world):
            used += [plan.lane_step(lane, s) for s in range(step, stop) for lane in rank_lanes(plan.lanes, rank, world)]
        step = stop
    assert sorted(np.concatenate(used)) == sorted(rows)


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


def clips(shards: int, size: int = 40_000) -> Layout:
    """Shards of a hundred clips each, side by side."""
    number = np.arange(100 * shards)
    return Layout(number // 100, number % 100 * size, np.full(len(number), size))


def usage(plan: EpochPlan) -> np.ndarray:
    """The samples in the order of their use."""
    return np.concatenate([plan.global_batch(step) for step in range(plan.steps)])


SETTINGS = {"seed": 0, "lanes": 16, "batch_size": 32, "window": 256, "drop_last": False}


def test_an_epoch_is_as_well_shuffled_as_a_permutation() -> None:
    layout, n = clips(100), 10_000
    rng = np.random.default_rng(0)

    def close_pairs(batches: list[np.ndarray]) -> float:
        """How many pairs of a batch are neighbours in the corpus, as clips of one speaker are."""
        return float(np.mean([(np.abs(batch[:, None] - batch) < 80).sum() - len(batch) for batch in batches]))

    for epoch in range(5):
        plan, ideal = shuffled_epoch(layout, np.arange(n), epoch=epoch, **SETTINGS), rng.permutation(n)
        order = usage(plan)
        # Chunks are what is shuffled over the whole epoch: by chance alone it correlates by 1 / sqrt(chunks).
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 3 / np.sqrt(100)
        assert np.abs(np.diff(order)).mean() > 0.75 * np.abs(np.diff(ideal)).mean()
        batches = [plan.global_batch(step) for step in range(plan.steps)]
        assert close_pairs(batches) < 1.4 * close_pairs(np.array_split(ideal, plan.steps))


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    layout, n = clips(20), 2_000
    orders = [
        usage(shuffled_epoch(layout, np.arange(n), epoch=epoch, **SETTINGS | {"seed": seed}))
        for seed in range(3)
        for epoch in range(8)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.01
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_bucketing_fills_batches_with_one_length_in_random_order() -> None:
    layout, n = clips(40), 4_000
    lengths = np.random.default_rng(0).integers(8_000, 160_000, n)
    plain, bucketed = (
        shuffled_epoch(layout, np.arange(n), epoch=0, lengths=given, **SETTINGS) for given in (None, lengths)
    )

    def padding(plan: EpochPlan) -> float:
        batches = [lengths[plan.global_batch(step)] for step in range(plan.steps)]
        return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)

    assert padding(plain) > 0.4
    assert padding(bucketed) < 0.1
    means = [lengths[bucketed.global_batch(step)].mean() for step in range(bucketed.steps)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@given(st.lists(st.integers(0, 4), min_size=1, max_size=400), st.integers(0, 2**31))
def test_balanced_sampling_gives_every_class_its_share_and_repeats_only_what_is_used_up(
    labels: list[int], seed: int
) -> None:
    label, rows = np.array(labels), np.arange(len(labels))
    drawn = np.concatenate(balance(rows, label, np.random.default_rng(seed)))
    assert len(drawn) == len(rows)
    shares = np.bincount(label[drawn])[np.unique(label)]
    assert shares.max() - shares.min() <= 1
    for one in np.unique(label):
        times = np.bincount(drawn[label[drawn] == one], minlength=len(rows))[label == one]
        assert times.max() - times.min() <= 1


@settings(max_examples=30)
@given(layouts(), st.integers(0, 20))
def test_a_balanced_epoch_is_a_function_of_its_arguments_too(case: tuple[Layout, np.ndarray], epoch: int) -> None:
    layout, rows = case
    labels = np.arange(len(layout.size)) ** 2 % 3
    first, second = (
        shuffled_epoch(layout, given, epoch=epoch, labels=labels, lengths=layout.size, **SETTINGS)
        for given in (rows, rows[::-1])
    )
    assert np.array_equal(first.order, second.order)
    assert len(first.order) == len(rows)


@given(layouts(), st.integers(1, 16), st.integers(1, 300))
def test_no_lane_holds_more_than_its_bound(case: tuple[Layout, np.ndarray], lanes: int, window: int) -> None:
    layout, rows = case
    plan = sequential_epoch(layout, rows, lanes=lanes, batch_size=lanes, window=window)
    assert plan.window == fit_window(layout.size[plan.order], lanes, window) <= window
    for lane in map(plan.lane, range(lanes)):
        held = [layout.size[lane[a : a + plan.window]].sum() for a in range(0, len(lane), plan.window)]
        assert plan.window == 1 or all(size <= WINDOW_BYTES for size in held)


def test_an_evaluation_takes_the_samples_in_the_order_of_the_shards() -> None:
    layout = Layout(np.array([1, 0, 0, 1]), np.array([0, 10, 0, 5]), np.array([5, 5, 10, 5]))
    plan = sequential_epoch(layout, np.array([0, 1, 3]), lanes=1, batch_size=2, window=4)
    assert plan.order.tolist() == [1, 0, 3]
    assert plan.steps == 2


@given(st.one_of(plans(), plans(balanced=True)), st.integers(1, 16))
def test_what_is_random_about_a_sample_is_drawn_once_for_each_of_its_copies_on_any_world(
    case: tuple[EpochPlan, np.ndarray], world: int
) -> None:
    plan, _ = case
    for step in range(plan.steps):
        batch, draws = plan.global_batch(step), plan.draws(step, range(plan.lanes))
        assert len(set(draws.tolist())) == len(batch)
        assert (draws % COPY == batch).all()
        first = np.unique(batch, return_index=True)[1]
        assert (draws[first] == batch[first]).all()
        parts = [plan.draws(step, rank_lanes(plan.lanes, rank, world)) for rank in range(world)]
        assert np.concatenate(parts).tolist() == draws.tolist()
