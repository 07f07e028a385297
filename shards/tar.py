"""Samples as the bytes of a tar, and back: WebDataset's layout, written without anything that varies."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

from parrot_dist.data.index import split_name

END = bytes(2 * tarfile.BLOCKSIZE)  # what ends a tar


def pack(key: str, members: Mapping[str, bytes]) -> bytes:
    """The tar bytes of one sample, without the end of an archive; the same members give the same bytes."""
    packed = io.BytesIO()
    for suffix, content in sorted(members.items()):
        header = tarfile.TarInfo(f"{key}.{suffix}")  # its defaults: time 0, owner 0, mode 0644
        header.size = len(content)
        packed.write(header.tobuf(tarfile.USTAR_FORMAT))
        packed.write(content)
        packed.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return packed.getvalue()


def ranges(file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Key, offset and size of each sample in a tar: runs of members that share a key.

    Raises:
        tarfile.TarError: not a tar, or cut short.
    """
    key, start, end = "", 0, 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isreg():
                continue
            stem, _ = split_name(member.name)
            if end and stem != key:
                yield key, start, end - start
            if not end or stem != key:
                key, start = stem, member.offset
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if end:
        yield key, start, end - start
