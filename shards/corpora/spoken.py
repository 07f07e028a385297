"""The synthetic corpus of `python -m shards.speak`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray
from shards.corpora.folder import read_table


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips of its metadata.csv."""
    return read_table(source, files, corpus="spoken")
