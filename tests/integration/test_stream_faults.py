"""Streaming from a real S3 server through a proxy that fails as stores fail, and that counts what is read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem

from parrot_dist import s3client, storage
from parrot_dist.data.index import read_index
from parrot_dist.data.plan import EpochPlan, rank_lanes, shuffled_epoch
from parrot_dist.data.stream import Corpus, RankStream, Utterance, _Parcels, _unpack
from parrot_dist.errors import Unreachable, UserError
from parrot_dist.local.s3 import S3Server
from tests.corpus import write_corpus
from tests.faults import PERMANENT, TRANSIENT, FaultProxy, fault_proxy


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy, as the store of this process; pauses are short."""
    with fault_proxy(s3.endpoint) as proxy:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, proxy.endpoint)
        monkeypatch.setattr(s3client, "LONGEST_PAUSE_S", 0.05)
        S3FileSystem.clear_instance_cache()  # s3fs keeps its clients
        yield proxy
    S3FileSystem.clear_instance_cache()
    s3client._make_client.cache_clear()


@pytest.fixture
def short_patience(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """For answers that stall. What is slow only is read again too, as on a busy machine anything may be."""
    monkeypatch.setitem(s3client.SETTINGS, "read_timeout", 0.5)


def open_corpus(url: str) -> Corpus:
    return Corpus.of(url, read_index(url), max_seconds=60)


def plan_epoch(corpus: Corpus, lanes: int, window: int, batch_size: int = 0, epoch: int = 0) -> EpochPlan:
    rows = np.arange(len(corpus.keys))
    settings = {"seed": 1, "epoch": epoch, "batch_size": batch_size or 2 * lanes, "drop_last": False}
    return shuffled_epoch(corpus.layout, rows, lanes=lanes, window=window, **settings)


def heard(stream: RankStream[Utterance]) -> list[tuple[int, bytes]]:
    return [(item.row, item.waveform.tobytes()) for step in stream for item in step]


@pytest.mark.usefixtures("short_patience")
def test_transient_faults_lose_and_repeat_nothing(
    bucket_url: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = open_corpus(write_corpus(bucket_url, speakers=8, clips=12))
    stream = RankStream(corpus, plan_epoch(corpus, lanes=4, window=5), range(4))
    undisturbed = heard(stream)
    proxy.faults.extend(fault for kind in TRANSIENT for fault in (kind, None))
    assert heard(stream) == undisturbed
    assert sorted(row for row, _ in undisturbed) == list(range(96))
    assert sorted(fault for fault, _ in proxy.done) == sorted(TRANSIENT)
    retried = [record for record in caplog.records if record.name == s3client.__name__]
    assert sum(record.args[-1] for record in retried) >= len(TRANSIENT)


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_body_that_breaks_is_continued_and_not_read_again(
    bucket_url: str, proxy: FaultProxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(s3client.SETTINGS, "read_timeout", 4)  # so that only the fault takes longer
    data = np.random.default_rng(0).bytes(4 * s3client.PIECE_BYTES)
    storage.write_bytes(f"{bucket_url}/a.tar", data)
    proxy.faults.append(fault)
    assert storage.read_bytes(f"{bucket_url}/a.tar", 10, len(data)) == data[10:]
    assert proxy.served < 1.8 * len(data)  # the proxy had read it all before it broke off in the middle


@pytest.mark.parametrize("fault", PERMANENT)
def test_permanent_faults_stop_with_the_place_and_the_status(bucket_url: str, proxy: FaultProxy, fault: str) -> None:
    corpus = open_corpus(write_corpus(bucket_url, speakers=2, clips=4))
    proxy.always = fault
    with pytest.raises(UserError) as stopped:
        heard(RankStream(corpus, plan_epoch(corpus, lanes=4, window=5), range(4)))
    assert f"{bucket_url}/{corpus.shards[0]}" in str(stopped.value)
    assert f"HTTP {fault}" in str(stopped.value)


@pytest.mark.parametrize("fault", ["503", "cut", "stall"])
def test_faults_without_an_end_are_an_outage(
    bucket_url: str, proxy: FaultProxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus(write_corpus(bucket_url, speakers=2, clips=4))
    monkeypatch.setitem(s3client.SETTINGS, "retries", {"max_attempts": 2, "mode": "standard"})
    monkeypatch.setitem(s3client.SETTINGS, "read_timeout", 0.1)
    s3client._make_client.cache_clear()
    proxy.always = fault
    with pytest.raises(Unreachable, match=corpus.shards[0]):
        corpus.read(np.arange(2))


def test_a_message_for_the_user_leaves_a_data_process_as_it_is(bucket_url: str, proxy: FaultProxy) -> None:
    corpus = open_corpus(write_corpus(bucket_url, speakers=2, clips=4))
    proxy.faults.extend([None] * 4 + ["403"])
    stream = RankStream(corpus, plan_epoch(corpus, lanes=4, window=1), range(4))
    with pytest.raises(UserError, match="HTTP 403") as stopped:
        list(_unpack(pickle.loads(pickle.dumps(parcel)) for parcel in _Parcels(stream)))
    assert "Traceback" not in str(stopped.value)


def read_by_sixteen(corpora: list[Corpus], plan: EpochPlan) -> list[int]:
    """The rows that sixteen workers get, each from its own of `corpora`."""
    rows = []
    for rank, corpus in enumerate(corpora):
        steps = [[item.row for item in step] for step in RankStream(corpus, plan, rank_lanes(16, rank, 16))]
        assert len(steps) == plan.steps
        rows += [row for step in steps for row in step]
    return rows


@pytest.mark.parametrize(
    ("speakers", "clips", "seconds", "window", "batch_size"),
    [
        (8, 25, 0.05, 256, 32),
        (8, 600, 0.05, 256, 128),
        (2, 150, 0.3, 64, 32),
        (2, 3, 0.3, 256, 32),
        (2, 4, 60.0, 256, 32),
    ],
    ids=["clips of 50 ms", "many of 50 ms", "one shard", "fewer samples than workers", "clips of a minute"],
)
def test_sixteen_workers_together_read_every_byte_once(
    bucket_url: str, proxy: FaultProxy, speakers: int, clips: int, seconds: float, window: int, batch_size: int
) -> None:
    corpus = open_corpus(write_corpus(bucket_url, speakers, clips, seconds))
    plan = plan_epoch(corpus, lanes=16, window=window, batch_size=batch_size)
    assert sorted(read_by_sixteen([corpus] * 16, plan)) == list(range(speakers * clips))
    assert corpus.layout.size.sum() <= proxy.served <= 1.05 * corpus.layout.size.sum()


def test_sixteen_nodes_with_caches_together_read_every_byte_once(
    bucket_url: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    url = write_corpus(bucket_url, speakers=2, clips=150)
    corpus = open_corpus(url)
    nodes = [corpus.kept_on_node(tmp_path / str(node) / "cache", 2**24, read_index(url)) for node in range(16)]
    for epoch in range(2):
        proxy.served = 0
        read_by_sixteen(nodes, plan_epoch(corpus, lanes=16, window=64, epoch=epoch))
        assert proxy.served <= 1.05 * corpus.layout.size.sum()
