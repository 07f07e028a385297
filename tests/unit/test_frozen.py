"""Frozen work kept on storage: what is read is what was computed, or nothing."""

from __future__ import annotations

import pickle
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist import storage
from parrot_dist.data import frozen
from parrot_dist.data.frozen import FrozenCorpus, Kept, TornRecord, missing_parts, pack, part_rows, unpack, write_part
from parrot_dist.data.index import Index, read_index
from parrot_dist.data.stream import Skipped
from parrot_dist.encoders import Activation
from tests.corpus import write_corpus


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(frozen, "PART_ROWS", 10)
    return read_index(write_corpus(str(tmp_path / "corpus"), speakers=4, clips=6))


def fill(entry: str, index: Index, broken: tuple[int, ...] = ()) -> dict[int, Activation]:
    made = {row: Activation(torch.randn(row % 3 + 1, 4), row) for row in range(len(index)) if row not in broken}
    for part in range(3):
        rows = part_rows(part, len(index)).tolist()
        here = {row: made[row] for row in rows if row in made}
        write_part(entry, part, here, {row: "no audio" for row in rows if row in broken})
    return made


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_a_record_gives_back_what_it_was_made_of(shape: list[int], steps: int) -> None:
    activation = Activation(torch.randn(shape), steps)
    again = unpack(pack(activation))
    assert torch.equal(again.x, activation.x)
    assert again.steps == steps


@given(st.integers(0, 59), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    data = bytearray(pack(Activation(torch.ones(10), 7)))
    data[place] ^= change
    with pytest.raises(TornRecord):
        unpack(bytes(data))


def test_an_entry_is_missing_what_was_not_finished(tmp_path: Path, index: Index) -> None:
    entry = str(tmp_path / "entry")
    assert missing_parts(entry, len(index)) == [0, 1, 2]
    write_part(entry, 1, {10: Activation(torch.ones(2), 1)}, {})
    storage.write_bytes(storage.join(entry, "part-000000.records"), b"the writer was killed after this")
    assert missing_parts(entry, len(index)) == [0, 2]


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_entry_gives_every_sample_in_any_order(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    monkeypatch.setattr(frozen, "IN_MEMORY_BYTES", 2**20 if in_memory else 0)
    entry = str(tmp_path / "entry")
    made = fill(entry, index, broken=(3, 17))
    corpus = FrozenCorpus.open(entry, index)
    rows = np.random.default_rng(0).permutation(len(index))
    data = corpus.read(rows)
    for row in rows.tolist():
        sample = corpus.decode(row, data[row])
        if row in made:
            assert isinstance(sample, Kept)
            assert torch.equal(sample.activation.x, made[row].x)
            assert sample.activation.steps == row
        else:
            assert sample == Skipped(row, index.key[row], "no audio")


def test_a_damaged_record_stops_and_says_what_to_do(tmp_path: Path, index: Index) -> None:
    entry = str(tmp_path / "entry")
    fill(entry, index)
    file = tmp_path / "entry" / "part-000001.records"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    corpus = FrozenCorpus.open(entry, index)
    last = part_rows(1, len(index))[-1:]
    with pytest.raises(OSError, match="is damaged; delete this folder"):
        corpus.decode(int(last[0]), corpus.read(last)[int(last[0])])


def test_an_entry_travels_to_a_data_process_without_its_records(tmp_path: Path, index: Index) -> None:
    entry = str(tmp_path / "entry")
    fill(entry, index)
    corpus = FrozenCorpus.open(entry, index)
    before = len(pickle.dumps(corpus))
    corpus.read(np.arange(3))
    assert len(pickle.dumps(corpus)) == before


def test_two_writers_of_a_part_leave_the_work_of_one_of_them_in_any_order_of_their_writes(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[str, bytes]] = []
    monkeypatch.setattr(storage, "write_bytes", lambda url, data: writes.append((url, data)))
    entries = [{row: Activation(torch.full((4,), float(writer)), 0) for row in range(10)} for writer in range(2)]
    for number, order in enumerate(set(permutations([0, 0, 1, 1]))):
        entry = str(tmp_path / f"entry{number}")
        fill(entry, index)
        rest = [write for write in writes if "part-000000" not in write[0]]
        writes.clear()
        theirs = []
        for made in entries:
            write_part(entry, 0, made, {})
            theirs.append(list(writes))
            writes.clear()
        for url, data in [*rest, *(theirs[writer].pop(0) for writer in order)]:
            Path(url).parent.mkdir(exist_ok=True)
            Path(url).write_bytes(data)
        corpus = FrozenCorpus.open(entry, index)
        for row in range(10):
            sample = corpus.decode(row, b"")
            assert isinstance(sample, Kept)
            assert any(torch.equal(sample.activation.x, made[row].x) for made in entries)
