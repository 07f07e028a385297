"""The index of a corpus: which sample lies at which bytes of which shard, as Parquet beside the tars.

The Parquet bytes are a function of the tars alone, so an index that was lost or doubted can be rebuilt by
`python -m shards.index` and has the same digest again.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from parrot_dist import storage
from parrot_dist.data import audio
from parrot_dist.errors import UserError

INDEX_NAME = "index.parquet"
AUDIO_MEMBERS = ("flac", "wav")
KNOWN_MEMBERS = (*AUDIO_MEMBERS, "json")
MAX_SAMPLE_BYTES = 2**28  # an hour of 16-bit audio is 115 MB; a range beyond this is a damaged index or header
PROBED_SHARDS = 8

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("samples", pa.int64()),
        ("label", pa.string()),
        ("speaker", pa.string()),
        ("corpus", pa.string()),
        ("language", pa.string()),
        ("fold", pa.string()),
    ]
)
REPEATED = ["shard", "label", "speaker", "corpus", "language", "fold"]

Strings = npt.NDArray[np.object_]
Integers = npt.NDArray[np.int64]


class BrokenSample(Exception):  # noqa: N818  the sample is broken, not the program
    """One sample cannot be used; the run skips, counts and names it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both in args, so that it survives pickling on its way out of a data worker
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class Row(NamedTuple):
    """One sample, as a row of the index."""

    key: str
    shard: str
    offset: int
    size: int
    samples: int
    label: str
    speaker: str
    corpus: str
    language: str
    fold: str = ""


@dataclass(frozen=True, eq=False)
class Index:
    """All samples of a corpus, column by column, in the order of their bytes: by shard, then by offset."""

    key: Strings
    shard: Strings
    """Names relative to the corpus URL."""
    offset: Integers
    """Where the sample's first tar header starts in its shard, in bytes."""
    size: Integers
    """Bytes of all its members with headers and padding: one ranged GET of [offset, offset + size) reads it."""
    samples: Integers
    """Length of the audio at 16 kHz."""
    label: Strings
    speaker: Strings
    corpus: Strings
    language: Strings
    fold: Strings
    """The corpus's own part, as in "Session1" or "dev"; "" where the corpus has none."""
    shard_sizes: Mapping[str, int]
    """Shard name -> size of the whole tar in bytes."""
    digest: str
    """SHA-256 of the Parquet bytes: the identity of the corpus for caches and checkpoints."""

    def __len__(self) -> int:
        return len(self.key)

    def speakers(self, rows: Integers) -> list[str]:
        """Who speaks in each of `rows`; a name belongs to its corpus."""
        return [f"{self.corpus[row]}/{self.speaker[row]}" for row in rows.tolist()]


def read_index(url: str) -> Index:
    """The index of the corpus at `url`.

    Raises:
        UserError: there is none, the store refuses access, or it is not an index of this project.
    """
    place = storage.join(url, INDEX_NAME)
    data = storage.find_bytes(place)
    if data is None:
        raise UserError(
            f"{url}: no {INDEX_NAME} there; check the bucket and the prefix, or make the corpus with "
            f"`python -m shards.build corpus=... source=... out={url}`"
        )
    try:
        return from_parquet(data)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{place}: not a usable index ({error}); {rebuild_hint(url)}") from error


def write_index(url: str, rows: Iterable[Row], shard_sizes: Mapping[str, int]) -> Index:
    """Write the index of the corpus at `url` and return it; the same rows give the same bytes."""
    data = to_parquet(rows, shard_sizes)
    index = from_parquet(data)  # before it is written: nobody shall read an index that is refused
    storage.write_bytes(storage.join(url, INDEX_NAME), data)
    return index


def check_index(url: str, index: Index) -> None:
    """Compare `index` with the shards at `url`: one listing, and the first sample of each of up to 8 shards.

    Raises:
        UserError: a shard is missing, has another size or holds another sample; names the shard and the remedy.
    """
    there = storage.list_files(url)
    for shard, size in index.shard_sizes.items():
        if there.get(shard) != size:
            found = f"has {there[shard]} bytes" if shard in there else "is missing"
            raise UserError(f"{url}: shard {shard} {found}, the index says {size} bytes; {rebuild_hint(url)}")
    _, firsts = np.unique(index.shard.astype(str), return_index=True)
    probes = firsts[np.linspace(0, len(firsts) - 1, min(PROBED_SHARDS, len(firsts)), dtype=int)]
    for row in probes:
        shard, start = str(index.shard[row]), int(index.offset[row])
        data = storage.read_bytes(storage.join(url, shard), start, start + int(index.size[row]))
        try:
            parse_members(data, index.key[row])
        except BrokenSample as error:
            raise UserError(f"{url}: shard {shard} does not match the index ({error}); {rebuild_hint(url)}") from error


def parse_members(data: bytes, key: str) -> dict[str, bytes]:
    """Member suffix -> content, of the known members in the tar bytes of the one sample `key`.

    Unknown suffixes are left alone and nothing is ever unpickled or written to disk.

    Raises:
        BrokenSample: not a tar, a member of another sample, or a size that the bytes do not bear out.
    """
    members = _plain_members(data, key)
    if members is not None:
        return members
    members = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stem, suffix = split_name(member.name)
                if stem != key:
                    raise BrokenSample(key, f"its bytes hold the tar member {member.name!r}")
                if suffix not in KNOWN_MEMBERS or not member.isreg():
                    continue
                if member.issparse() or member.offset_data + member.size > len(data):
                    raise BrokenSample(key, f"{member.name!r} claims {member.size} bytes, more than there are")
                members[suffix] = data[member.offset_data : member.offset_data + member.size]
    except tarfile.TarError as error:
        raise BrokenSample(key, f"its bytes are not a tar ({error})") from error
    return members


def _plain_members(data: bytes, key: str) -> dict[str, bytes] | None:
    """What `parse_members` gives where all is as it should be, without `tarfile`, which takes a tenth of the decoding.

    None leaves it to `tarfile` to judge: a header that is not plain or not whole, a member of another sample.
    """
    members, at = {}, 0
    try:
        while at < len(data) and (header := data[at : at + tarfile.BLOCKSIZE]) != bytes(tarfile.BLOCKSIZE):
            size, checksum = int(header[124:135], 8), int(header[148:154], 8)
            blank = sum(header) - sum(header[148:156]) + 8 * ord(" ")
            stem, suffix = split_name(header[: header.index(0)].decode("ascii"))
            begin, end = at + tarfile.BLOCKSIZE, at + tarfile.BLOCKSIZE + size
            plain = header[156:157] == tarfile.REGTYPE and not header[345]  # no prefix of a long name
            if not plain or checksum != blank or stem != key or end > len(data):
                return None
            if suffix in KNOWN_MEMBERS:
                members[suffix] = data[begin:end]
            at = begin + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except (ValueError, IndexError):
        return None
    return members


def read_sample(data: bytes, key: str, memory: audio.Memory = audio.empty) -> audio.Waveform:
    """The waveform (N,) at 16 kHz in the tar bytes of the sample `key`; `memory`: see `audio.decode`.

    Raises:
        BrokenSample: the tar or the audio in it cannot be used.
    """
    encoded = audio_member(parse_members(data, key), key)
    try:
        return audio.decode(encoded, memory)
    except ValueError as error:
        raise BrokenSample(key, str(error)) from error


def audio_member(members: Mapping[str, bytes], key: str) -> bytes:
    """The encoded audio among the members of the sample `key`.

    Raises:
        BrokenSample: there is none.
    """
    for suffix in AUDIO_MEMBERS:
        if suffix in members:
            return members[suffix]
    raise BrokenSample(key, f"no member {' or '.join(AUDIO_MEMBERS)}")


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case suffix of a tar member, by WebDataset's rule: the first dot of the file name parts them."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def rebuild_hint(url: str) -> str:
    """What to do about an index that is not right."""
    return f"`python -m shards.index {url}` rebuilds the index from the shards"


def to_parquet(rows: Iterable[Row], shard_sizes: Mapping[str, int]) -> bytes:
    """The Parquet bytes of an index; rows are sorted by shard and offset."""
    ordered = sorted(rows, key=lambda row: (row.shard, row.offset))
    metadata = {"shard_sizes": json.dumps(dict(shard_sizes), sort_keys=True)}
    columns: list[tuple[Any, ...]] = list(zip(*ordered, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata)), file, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> Index:
    """The index in Parquet bytes.

    Raises:
        ValueError: a column is missing, a byte range that cannot be, a shard without a size, or no samples at all.
        TypeError, KeyError, OSError: not a Parquet file, or not one with the metadata of an index.
    """
    table = pq.read_table(io.BytesIO(data), read_dictionary=REPEATED)
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:  # as in the index of an older version of this project
        raise ValueError(f"no column {', '.join(missing)}")
    sizes: dict[str, int] = json.loads(table.schema.metadata[b"shard_sizes"])
    columns: dict[str, Any] = {name: _to_numpy(table.column(name)) for name in SCHEMA.names}
    index = Index(**columns, shard_sizes=sizes, digest=hashlib.sha256(data).hexdigest())
    _check_ranges(index)
    return index


def _to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as numpy; equal strings of a dictionary column share one object, so millions of rows stay small."""
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.DictionaryArray):
        return array.dictionary.to_numpy(zero_copy_only=False)[array.indices.to_numpy()]  # type: ignore[no-any-return]
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _check_ranges(index: Index) -> None:
    if not len(index):
        raise ValueError("it holds no samples")
    unknown = set(index.shard) - set(index.shard_sizes)
    if unknown:
        raise ValueError(f"shards without a recorded size: {sorted(unknown)[:3]}")
    shard_size = np.array([index.shard_sizes[shard] for shard in index.shard], dtype=np.int64)
    wrong = (index.offset < 0) | (index.size <= 0) | (index.offset + index.size > shard_size)
    wrong |= (index.size > MAX_SAMPLE_BYTES) | (index.samples <= 0) | (index.samples > audio.MAX_SAMPLES)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"sample {index.key[row]} has an impossible byte range or length")
