"""Any corpus: described by a table `metadata.csv`, or by its folders, `<label>/<speaker>_<anything>.wav`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shards.corpora import UNKNOWN_LANGUAGE, Clip, Stray, is_audio
from shards.tables import REPEATED, read_rows

TABLE = "metadata.csv"
REQUIRED = ("path", "label", "speaker")
OPTIONAL = ("language", "text", "fold")


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by the table where there is one, else by the folders; the corpus is called like its folder."""
    corpus = source.rstrip("/").rpartition("/")[2]
    return read_table(source, files, corpus) if TABLE in files else read_folders(files, corpus)


def read_table(source: str, files: Mapping[str, int], corpus: str) -> Iterator[Clip | Stray]:
    """The clips of metadata.csv: columns path, label, speaker and, where known, language, text and fold.

    Raises:
        UserError: there is no such table, or a column is missing.
    """
    listed = set()
    for row in read_rows(source, TABLE, REQUIRED):
        if row["path"] in listed:
            yield Stray(f"{TABLE}: {row['path']}", REPEATED)
            continue
        listed.add(row["path"])
        yield _clip(row, files, corpus)
    yield from (Stray(path, f"not in {TABLE}") for path in files if is_audio(path) and path not in listed)


def read_folders(files: Mapping[str, int], corpus: str) -> Iterator[Clip | Stray]:
    """The clips of `<label>/<speaker>_<anything>.wav`."""
    for path in filter(is_audio, files):
        label, _, name = path.rpartition("/")
        speaker, underscore, _ = name.partition("_")
        if label and "/" not in label and speaker and underscore:
            yield Clip(path, label, speaker, corpus, UNKNOWN_LANGUAGE)
        else:
            yield Stray(path, "not of the form <label>/<speaker>_<anything>")


def _clip(row: Mapping[str, str], files: Mapping[str, int], corpus: str) -> Clip | Stray:
    path, label, speaker = (row[name] for name in REQUIRED)
    if path not in files:
        return Stray(path, f"in {TABLE}, but there is no such file")
    if not label or not speaker:
        return Stray(path, f"without a label or a speaker in {TABLE}")
    language, text, fold = (row.get(name, "") for name in OPTIONAL)
    return Clip(path, label, speaker, corpus, language or UNKNOWN_LANGUAGE, text, fold)
