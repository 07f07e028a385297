"""Streaming: the waveforms of the plan, each byte once, broken samples named, from any step and any process."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist import storage
from parrot_dist.data.augmentation import Augmentation
from parrot_dist.data.index import read_index
from parrot_dist.data.plan import EpochPlan, Layout, rank_lanes, shuffled_epoch, spans
from parrot_dist.data.stream import (
    HEAD,
    PREFETCH,
    Corpus,
    Part,
    RankStream,
    Skipped,
    Utterance,
    _Parcels,
    _Room,
    iterate,
)
from parrot_dist.errors import UserError
from tests.corpus import write_corpus

SPEAKERS, CLIPS = 4, 12


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    url = write_corpus(str(tmp_path), speakers=SPEAKERS, clips=CLIPS)
    return Corpus.of(url, read_index(url), max_seconds=1.0)


def make_plan(corpus: Corpus, epoch: int = 0) -> EpochPlan:
    rows = np.arange(len(corpus.keys))
    return shuffled_epoch(corpus.layout, rows, seed=1, epoch=epoch, lanes=4, batch_size=8, window=5, drop_last=False)


def batches(stream: RankStream, workers: int = 0) -> list[list[int]]:
    return [[item.row for item in items] for items in iterate(stream, workers)]


def heard(stream: RankStream, workers: int = 0) -> list[list[tuple[int, bytes]]]:
    return [[(item.row, item.waveform.tobytes()) for item in items] for items in iterate(stream, workers)]


def test_ranks_read_what_the_plan_says(corpus: Corpus) -> None:
    plan = make_plan(corpus)
    for world in (1, 2, 3, 4):
        streams = [batches(RankStream(corpus, plan, rank_lanes(4, rank, world))) for rank in range(world)]
        for step in range(plan.steps):
            together = [row for stream in streams for row in stream[step]]
            assert together == plan.global_batch(step).tolist()


def test_waveforms_belong_to_their_rows(corpus: Corpus) -> None:
    items = [item for step in RankStream(corpus, make_plan(corpus), range(4)) for item in step]
    assert len(items) == SPEAKERS * CLIPS
    for item in items:
        assert isinstance(item, Utterance)
        spectrum = np.abs(np.fft.rfft(item.waveform))
        pitch = spectrum.argmax() * 16_000 / len(item.waveform)
        number = int(str(corpus.keys[item.row])[-4:])
        assert abs(pitch - (100 + 20 * number)) < 10


def test_long_utterances_are_cut(corpus: Corpus) -> None:
    corpus = Corpus.of(corpus.url, read_index(corpus.url), max_seconds=0.1)
    items = [item for step in RankStream(corpus, make_plan(corpus), range(4)) for item in step]
    assert {len(item.waveform) for item in items if isinstance(item, Utterance)} == {1600}


def test_a_resumed_stream_is_the_rest_of_the_whole_one(corpus: Corpus) -> None:
    plan = make_plan(corpus)
    whole = batches(RankStream(corpus, plan, range(1, 3)))
    for start in range(plan.steps + 1):
        assert batches(RankStream(corpus, plan, range(1, 3), start)) == whole[start:]


def test_every_byte_is_read_once_in_runs(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, read, reads = make_plan(corpus), storage.read_bytes, []

    def counted(url: str, start: int, end: int) -> bytes:
        reads.append((url, start, end))
        return read(url, start, end)

    monkeypatch.setattr(storage, "read_bytes", counted)
    for rank in range(2):
        batches(RankStream(corpus, plan, rank_lanes(4, rank, 2)))
    assert sum(end - start for _, start, end in reads) == corpus.layout.size.sum()
    assert len(reads) < len(corpus.keys)


def test_a_broken_sample_is_skipped_and_named_and_no_other(corpus: Corpus) -> None:
    victim = 7
    shard = Path(corpus.url, corpus.shards[corpus.layout.shard[victim]])
    data = bytearray(shard.read_bytes())
    begin = int(corpus.layout.offset[victim]) + 512
    data[begin : begin + 64] = bytes(64)
    shard.write_bytes(data)
    items = [item for step in RankStream(corpus, make_plan(corpus), range(4)) for item in step]
    broken = [item for item in items if isinstance(item, Skipped)]
    assert [(item.row, item.key) for item in broken] == [(victim, corpus.keys[victim])]
    assert "audio" in broken[0].reason
    assert len(items) == SPEAKERS * CLIPS


def test_a_cut_shard_stops_the_stream(corpus: Corpus) -> None:
    shard = Path(corpus.url, corpus.shards[0])
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(OSError, match="the object is too short"):
        batches(RankStream(corpus, make_plan(corpus), range(4)))


def test_a_stream_travels_to_a_process_and_opens_nothing_before(corpus: Corpus) -> None:
    with patch("parrot_dist.storage.filesystem") as filesystem, patch("parrot_dist.s3client.client") as client:
        stream = pickle.loads(pickle.dumps(RankStream(corpus, make_plan(corpus), range(4))))
    assert filesystem.mock_calls == client.mock_calls == []
    assert batches(stream) == [make_plan(corpus).global_batch(step).tolist() for step in range(stream.plan.steps)]


def test_data_workers_change_nothing(corpus: Corpus) -> None:
    change = Augmentation(seed=1, epoch=0, noise=0.1, gain_db=3, speed=0.1)
    plan = replace(make_plan(corpus), batch_size=4)
    assert plan.steps > 2 * (PREFETCH + 1)  # shared memory is used again
    stream = RankStream(corpus, plan, range(1, 4), 1, change)
    assert heard(stream, workers=2) == heard(stream)


@pytest.mark.parametrize("failure", [UserError("refused"), OSError("cut")])
def test_a_data_worker_that_failed_never_ends(failure: Exception) -> None:
    """A loader gives the turns of one that ended to the others, whose shared memory is then used again too soon."""

    class Failing(RankStream):
        def parts(self) -> Iterator[Part]:
            yield Part(0, [0], [(0, b"")])
            raise failure

    layout = Layout(*np.zeros((3, 1), np.int64))
    plan = shuffled_epoch(layout, [0], seed=0, epoch=0, lanes=1, batch_size=1, window=1, drop_last=False)
    parcels = iter(_Parcels(Failing(Heap(layout), plan, range(1))))

    def following() -> object:
        try:
            return next(parcels)
        except OSError as raised:
            return raised

    assert [following() for _ in range(4)][1:] == [failure] * 3


@given(st.lists(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=6), max_size=8))
def test_what_is_brought_into_a_room_lies_there(parts: list[list[tuple[int, bool]]]) -> None:
    room, number = _Room(), 0
    for part in parts:
        room.clear()
        waves = []
        for samples, decoded in part:
            wave = room.take(samples) if decoded else np.empty(samples, np.float32)
            wave[:] = number = number + 1
            waves.append(wave[: samples // 2 + 1])  # as one that is cut
        shared = room.shared
        begins = room.bring(waves)
        if room.shared is not shared:  # it grew, and did not without need
            assert len(shared) < sum(samples for samples, _ in part) < len(room.shared) * 2
        for begin, wave in zip(begins, waves, strict=True):
            np.testing.assert_array_equal(room.shared[begin : begin + len(wave)].numpy(), wave)


@pytest.mark.parametrize("change", [None, Augmentation(seed=1, epoch=0, noise=0.1, gain_db=3, speed=0.1)])
def test_shared_memory_is_as_large_as_a_part_and_a_quarter(corpus: Corpus, change: Augmentation | None) -> None:
    parcels = list(_Parcels(RankStream(corpus, make_plan(corpus), range(4), augmentation=change)))
    largest = max(sum(getattr(item, "samples", 0) for item in parcel.items) for parcel in parcels)
    assert 0 < max(len(parcel.memory) for parcel in parcels if parcel.memory is not None) <= 1.25 * largest


def test_data_workers_are_not_forked_from_a_process_with_clients() -> None:
    layout = Layout(*np.zeros((3, 1), np.int64))
    plan = shuffled_epoch(layout, [0], seed=0, epoch=0, lanes=1, batch_size=1, window=1, drop_last=False)
    ((parent,),) = iterate(RankStream(Parents(layout), plan, range(1)), workers=1)
    assert int(parent.reason) not in (os.getpid(), os.getppid())


def test_no_rows_are_no_bytes(corpus: Corpus) -> None:
    assert corpus.read(np.zeros(0, np.int64)) == {}


def test_waveforms_are_augmented_alike_on_any_number_of_ranks_and_on_resume(corpus: Corpus) -> None:
    plan, change = make_plan(corpus), Augmentation(seed=1, epoch=0, noise=0.1, gain_db=3, speed=0.1)

    def share(lanes: range, start: int = 0) -> list[list[tuple[int, bytes]]]:
        return heard(RankStream(corpus, plan, lanes, start, change))

    whole = share(range(4))
    assert len({wave for step in whole for _, wave in step}) == SPEAKERS * CLIPS
    assert [left + right for left, right in zip(share(range(2)), share(range(2, 4)), strict=True)] == whole
    assert share(range(4), start=2) == whole[2:]


def test_a_balanced_epoch_streams_repeated_samples(corpus: Corpus) -> None:
    labels = (np.arange(len(corpus.keys)) % 6 == 0).astype(np.int64)
    settings = {"seed": 1, "epoch": 0, "lanes": 4, "batch_size": 8, "window": 40, "drop_last": False}
    plan = shuffled_epoch(corpus.layout, np.arange(len(labels)), labels=labels, **settings)
    rows = [row for step in batches(RankStream(corpus, plan, range(4))) for row in step]
    assert sorted(rows) == sorted(plan.order)
    assert np.mean(labels[rows]) == 0.5


def test_copies_of_a_sample_in_a_batch_are_augmented_differently(corpus: Corpus) -> None:
    labels = (np.arange(len(corpus.keys)) > 1).astype(np.int64)
    settings = {"seed": 1, "epoch": 0, "lanes": 4, "batch_size": 16, "window": 40, "drop_last": False}
    plan = shuffled_epoch(corpus.layout, np.arange(len(labels)), labels=labels, **settings)
    for step in heard(RankStream(corpus, plan, range(4), augmentation=Augmentation(seed=1, epoch=0, gain_db=3))):
        assert len({row for row, _ in step}) < len(step) == len({wave for _, wave in step})


def test_a_node_reads_the_shards_once_for_all_epochs_and_ranks(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = storage.read_bytes, []

    def counted(url: str, start: int, end: int) -> bytes:
        reads.append(end - start)
        return read(url, start, end)

    plain = [batches(RankStream(corpus, make_plan(corpus, epoch), range(4))) for epoch in range(3)]
    cached = corpus.kept_on_node(tmp_path / "cache", 2**24, read_index(corpus.url))
    monkeypatch.setattr(storage, "read_bytes", counted)
    for epoch in range(3):
        assert (
            batches(RankStream(pickle.loads(pickle.dumps(cached)), make_plan(corpus, epoch), range(4))) == plain[epoch]
        )
        if epoch:
            assert not reads
        reads.clear()


def test_the_first_step_does_not_wait_for_a_whole_window(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, pieces = np.arange(len(corpus.keys)), []
    settings = {"seed": 1, "epoch": 0, "lanes": 1, "batch_size": 1, "window": 40, "drop_last": False}
    plan = shuffled_epoch(corpus.layout, rows, **settings)
    monkeypatch.setattr(Corpus, "read", lambda _, rows: pieces.append(len(rows)) or dict.fromkeys(rows.tolist(), b""))
    list(RankStream(corpus, plan, range(1)))
    assert pieces == [1, 39, 8]
    pieces.clear()
    list(RankStream(corpus, plan, range(1), start=3))
    assert pieces == [1, 36, 8]


@given(st.data())
def test_no_more_than_the_beginning_of_a_lane_is_read_twice(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, lanes = data.draw(st.tuples(st.integers(1, 3000), st.sampled_from([1, 4, 16])))
    size = rng.integers(1, data.draw(st.sampled_from([8, 200, 4000])), n) * 512
    layout = Layout(np.sort(rng.integers(0, 3, n)), np.cumsum(size) - size, size)
    settings = {"seed": 1, "epoch": 0, "batch_size": lanes * data.draw(st.integers(1, 8)), "drop_last": False}
    plan = shuffled_epoch(layout, np.arange(n), lanes=lanes, window=data.draw(st.integers(1, 300)), **settings)
    stream = RankStream(Heap(layout), plan, range(lanes), start=data.draw(st.integers(0, plan.steps)))

    def read(pieces: list[np.ndarray]) -> int:
        return sum(end - begin for piece in pieces for _, begin, end in spans(layout, piece))

    for lane in range(lanes):
        pieces = stream._pieces(lane)
        whole = [np.concatenate(pieces[:2]), *pieces[2:]] if len(pieces) > 1 else pieces
        assert read(pieces) <= (1 + HEAD) * read(whole)


class Held(bytes):
    """Bytes that are counted as long as anything holds them."""

    now = 0

    def __new__(cls, size: int) -> Held:
        cls.now += size
        return super().__new__(cls, size)

    def __del__(self) -> None:
        Held.now -= len(self)


@dataclass(frozen=True)
class Heap:
    """A source whose samples take memory and nothing else."""

    layout: Layout
    read_ahead = None
    in_memory = False

    def read(self, rows: np.ndarray) -> dict[int, bytes]:
        return {row: Held(int(self.layout.size[row])) for row in rows.tolist()}

    def decode(self, row: int, data: bytes, memory: object = None) -> Utterance:
        return Utterance(row, np.zeros(1, np.float32))


class Parents(Heap):
    """A source that tells which process started its own."""

    def decode(self, row: int, data: bytes, memory: object = None) -> Skipped:
        return Skipped(row, "", str(os.getppid()))


@given(st.data())
def test_a_lane_holds_two_windows_at_most(data: st.DataObject) -> None:
    bound, rng = 4_000, np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, lanes, rows_of_lane = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 6), st.integers(1, 4)))
    size = rng.integers(1, data.draw(st.sampled_from([10, 200, 3_000])), n)
    layout = Layout(np.zeros(n, np.int64), np.cumsum(size) - size, size)
    with patch("parrot_dist.data.plan.WINDOW_BYTES", bound):
        plan = shuffled_epoch(
            layout,
            np.arange(n),
            seed=0,
            epoch=0,
            lanes=lanes,
            batch_size=lanes * rows_of_lane,
            window=data.draw(st.integers(1, 64)),
            drop_last=False,
            lengths=data.draw(st.sampled_from([None, size])),
            labels=data.draw(st.sampled_from([None, np.arange(n) % 7 % 3])),
        )
    start = data.draw(st.integers(0, plan.steps))
    most = 2 * lanes * max(bound, rows_of_lane * size.max())
    for _ in RankStream(Heap(layout), plan, range(lanes), start):
        assert Held.now <= most
    assert Held.now == 0
