"""The index: what goes in comes out, and what does not fit its shards is found out."""

import contextlib
import io
import pickle
import tarfile
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from parrot_dist.data import audio, index
from parrot_dist.data.index import BrokenSample, Row
from parrot_dist.errors import UserError

WAVEFORM = (0.1 * np.sin(np.arange(1600) / 20)).astype(np.float32)
names = st.text("abcäß-", min_size=1, max_size=5)


def tar_bytes(*members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def sample_bytes(key):
    data = tar_bytes((f"{key}.flac", audio.encode_flac(WAVEFORM)), (f"{key}.json", b"{}"))
    return data[: len(data.rstrip(b"\0")) // 512 * 512 + 512]  # without the end of the archive


@pytest.fixture
def corpus(tmp_path):
    """Ten shards of two samples each, and their index."""
    rows, sizes = [], {}
    for number in range(10):
        shard, data = f"s{number}.tar", b""
        for key in (f"k{number}a", f"k{number}b"):
            sample = sample_bytes(key)
            rows.append(Row(key, shard, len(data), len(sample), 1600, "joy", "anna", "mini", "en"))
            data += sample
        (tmp_path / shard).write_bytes(data + bytes(1024))
        sizes[shard] = len(data) + 1024
    index.write_index(str(tmp_path), rows, sizes)
    return tmp_path


@st.composite
def indexes(draw):
    count = draw(st.integers(1, 12))
    keys = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    size = st.integers(1, 2**20)
    rows = [
        Row(key, f"{number % 3}.tar", 2**20 * number, draw(size), draw(size), *(draw(names) for _ in range(5)))
        for number, key in enumerate(keys)
    ]
    return rows, {row.shard: 2**30 for row in rows}


@given(indexes(), st.randoms())
def test_an_index_reads_back_as_it_was_written_in_any_order_of_rows(made, random):
    rows, sizes = made
    shuffled = random.sample(rows, len(rows))
    data = index.to_parquet(rows, sizes)
    assert index.to_parquet(shuffled, dict(reversed(sizes.items()))) == data
    read = index.from_parquet(data)
    columns = zip(*(getattr(read, name) for name in Row._fields), strict=True)
    assert [Row(*values) for values in columns] == sorted(rows, key=lambda row: (row.shard, row.offset))
    assert read.shard_sizes == sizes


def test_the_digest_is_that_of_the_content(corpus):
    before = index.read_index(str(corpus))
    row = Row("k", "s0.tar", 0, 512, 1, "joy", "anna", "mini", "en")
    assert index.from_parquet(index.to_parquet([row], {"s0.tar": 512})).digest != before.digest
    assert index.read_index(str(corpus)).digest == before.digest


def test_no_index_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"no index\.parquet .*python -m shards\.build"):
        index.read_index(str(tmp_path / "nowhere"))


def test_a_damaged_index_says_how_to_rebuild_it(corpus):
    place = corpus / "index.parquet"
    for damaged in (b"", b"PAR1", place.read_bytes()[:-20], place.read_bytes()[100:]):
        place.write_bytes(damaged)
        with pytest.raises(UserError, match=r"python -m shards\.index"):
            index.read_index(str(corpus))


def test_an_index_of_an_older_version_says_how_to_rebuild_it(corpus):
    place = str(corpus / "index.parquet")
    parquet.write_table(parquet.read_table(place).drop_columns("fold"), place)
    with pytest.raises(UserError, match=r"no column fold.*python -m shards\.index"):
        index.read_index(str(corpus))


@pytest.mark.parametrize(
    "change", [{"offset": -512}, {"size": 0}, {"size": 2**40}, {"offset": 2**62}, {"samples": 0}, {"samples": 2**40}]
)
def test_impossible_ranges_are_refused(change):
    row = Row("k", "s.tar", 0, 512, 1, "joy", "anna", "mini", "en")._replace(**change)
    with pytest.raises(ValueError, match="impossible"):
        index.from_parquet(index.to_parquet([row], {"s.tar": 2**62}))


def test_an_empty_index_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        index.from_parquet(index.to_parquet([], {}))


def test_a_matching_index_passes(corpus):
    index.check_index(str(corpus), index.read_index(str(corpus)))


def test_a_missing_shard_is_named(corpus):
    (corpus / "s7.tar").unlink()
    with pytest.raises(UserError, match=r"shard s7\.tar is missing.*python -m shards\.index"):
        index.check_index(str(corpus), index.read_index(str(corpus)))


def test_a_shard_of_another_size_is_named(corpus):
    with (corpus / "s7.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match=r"shard s7\.tar has .*python -m shards\.index"):
        index.check_index(str(corpus), index.read_index(str(corpus)))


@pytest.mark.parametrize("shard", ["s0.tar", "s9.tar"])
@pytest.mark.parametrize("content", ["other samples", "noise"])
def test_a_shard_with_other_content_of_the_same_size_is_named(corpus, shard, content):
    data = (corpus / "s5.tar").read_bytes()
    (corpus / shard).write_bytes(data if content == "other samples" else b"x" * len(data))
    with pytest.raises(UserError, match=rf"shard {shard} does not match.*python -m shards\.index"):
        index.check_index(str(corpus), index.read_index(str(corpus)))


def test_a_sample_reads_back(corpus):
    read = index.read_index(str(corpus))
    start, size = read.offset[3], read.size[3]
    data = (corpus / read.shard[3]).read_bytes()[start : start + size]
    np.testing.assert_allclose(index.read_sample(data, read.key[3]), WAVEFORM, atol=2**-15)


def test_unknown_members_are_left_alone():
    data = tar_bytes(("k.pyd", b"evil"), ("k.pickle", b"evil"), ("k.JSON", b"{}"), ("k.flac.txt", b""))
    assert index.parse_members(data, "k") == {"json": b"{}"}


@pytest.mark.parametrize("name", ["other.flac", "../k.flac", "/k.flac", "k/k.flac", "k.d/k.flac"])
def test_members_of_another_key_break_the_sample(name):
    with pytest.raises(BrokenSample, match="hold the tar member"):
        index.parse_members(tar_bytes((name, b"x")), "k")


def test_a_header_that_claims_4_gb_is_refused():
    header = tarfile.TarInfo("k.flac")
    header.size = 2**32
    with pytest.raises(BrokenSample, match=r"claims 4294967296 bytes|not a tar"):
        index.parse_members(header.tobuf(tarfile.USTAR_FORMAT) + bytes(512), "k")


def test_a_sparse_member_is_refused():
    header = bytearray(tarfile.TarInfo("k.flac").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"77777777777\0"  # the size after unfolding
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(BrokenSample):
        index.parse_members(bytes(header), "k")


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=40))
def test_damaged_bytes_give_members_or_a_broken_sample_and_nothing_else(position, noise):
    data = bytearray(sample_bytes("k"))
    data[position : position + len(noise)] = noise
    members = {}
    with contextlib.suppress(BrokenSample):
        members = index.parse_members(bytes(data), "k")
    assert set(members) <= {"flac", "wav", "json"}


NAMES = ["k.flac", "k.json", "k.JSON", "k.pyd", "k", "other.flac", "../k.flac", "k.é", f"{'d' * 80}/{'k' * 60}.flac"]


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=1500)), max_size=4),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 5000),
    st.binary(max_size=12),
    st.integers(0, 600),
)
def test_headers_are_judged_as_tarfile_judges_them(members, form, position, noise, cut):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    data = bytearray(file.getvalue())
    data[position : position + len(noise)] = noise
    data = bytes(data[: len(data) - cut])

    def judged():
        try:
            return index.parse_members(data, "k")
        except BrokenSample as broken:
            return str(broken)

    as_it_is = judged()
    with patch.object(index, "_plain_members", return_value=None):
        assert as_it_is == judged()


@given(st.binary(max_size=1500))
def test_random_bytes_give_a_broken_sample(data):
    with pytest.raises(BrokenSample):
        index.read_sample(data, "k")


def test_broken_audio_names_key_and_reason():
    with pytest.raises(BrokenSample, match=r"^k: not a readable audio file"):
        index.read_sample(tar_bytes(("k.flac", b"noise")), "k")


def test_a_broken_sample_survives_the_way_out_of_a_data_worker():
    error = pickle.loads(pickle.dumps(BrokenSample("k", "no audio")))
    assert (error.key, error.reason, str(error)) == ("k", "no audio", "k: no audio")
