"""The label tables and transcripts that lie beside the audio of a corpus."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from parrot_dist import storage
from parrot_dist.errors import UserError

READERS = 32  # files read at a time; the work is waiting for the store
REPEATED = "named by a second row; the first counts"


def find_table(source: str, files: Mapping[str, int], *names: str) -> str:
    """The path of the file that is called one of `names` among `files`, in whatever folder; of equal copies the first.

    Raises:
        UserError: there is none, or there are several that differ.
    """
    found = [path for path in files if path.rpartition("/")[2] in names]
    needs = f"source={source}: needs one {' or '.join(names)}, and there are"
    if not found:
        raise UserError(f"{needs} none")
    if len(found) > 1 and len({storage.read_bytes(storage.join(source, path)) for path in found}) > 1:
        raise UserError(f"{needs} {', '.join(found)}, which differ; leave only the one that shall count")
    return found[0]


def read_rows(source: str, path: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV table with a header, every value without blanks around it; absent values are "".

    Raises:
        UserError: there is no such table, it is not UTF-8 or no CSV, or one of `columns` is missing.
    """
    place = storage.join(source, path)
    try:
        text = storage.read_bytes(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error})") from error
    table = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        names = table.fieldnames or ()
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(f"{place}: no column {', '.join(missing)}; it has {', '.join(names)}")
        yield from ({name: row[name].strip() for name in names} for row in table)
    except csv.Error as error:
        raise UserError(
            f"{place}: not a CSV table ({error}, read up to line {table.line_num}); is there a stray quotation mark?"
        ) from error


def read_texts(source: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Path and content of each text file, in order; a byte that is not UTF-8 is no reason to lose a transcript."""
    chosen = list(paths)
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(partial(_read_text, source), chosen)
        yield from zip(chosen, contents, strict=True)


def _read_text(source: str, path: str) -> str:
    return storage.read_bytes(storage.join(source, path)).decode("utf-8-sig", errors="replace")
