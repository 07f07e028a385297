"""Streaming: the waveforms of the plan, each byte once, broken samples named, from any step and any process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from parrot_dist import storage
from parrot_dist.data.augmentation import Augmentation
from parrot_dist.data.index import read_index
from parrot_dist.data.plan import EpochPlan, rank_lanes, shuffled_epoch
from parrot_dist.data.stream import Corpus, RankStream, Skipped, Utterance, iterate
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
    stream = pickle.loads(pickle.dumps(RankStream(corpus, make_plan(corpus), range(4))))
    assert batches(stream) == [make_plan(corpus).global_batch(step).tolist() for step in range(stream.plan.steps)]


def test_data_workers_change_nothing(corpus: Corpus) -> None:
    change = Augmentation(seed=1, epoch=0, noise=0.1, gain_db=3, speed=0.1)
    stream = RankStream(corpus, make_plan(corpus), range(1, 4), 1, change)
    assert heard(stream, workers=2) == heard(stream)


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
