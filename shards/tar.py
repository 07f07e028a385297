"""Samples as the bytes of a tar, and back: WebDataset's layout, written without anything that varies."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, cast

from parrot_dist.data.index import split_name

END = bytes(2 * tarfile.BLOCKSIZE)  # what ends a tar
MAX_HEADER_BYTES = 2**20  # a long name takes a few hundred; one that claims gigabytes must not be read into memory


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

    Only headers are read, one at a time; `file` may be read elsewhere between two samples.

    Raises:
        tarfile.TarError: not a tar, or cut short.
    """
    key, start, end = "", 0, 0
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember every header
            if not member.isreg():
                continue
            stem, _ = split_name(member.name)
            if end and stem != key:
                yield key, start, end - start
            if not end or stem != key:
                key, start = stem, member.offset
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        stopped = tar.offset
    if end:
        yield key, start, end - start
    file.seek(stopped)
    if file.read(len(END)) != END:  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"neither a header nor the end of a tar at byte {stopped}")


def leads_out(name: str) -> bool:
    """Whether a member of this name would be unpacked outside of the folder it is unpacked in."""
    return name.startswith("/") or ".." in name.split("/")


class _Headers:
    """A file as `tarfile` reads it when only headers are wanted, with no reading of more than a header."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)
