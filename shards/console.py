"""What a person sees of a long command."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
NAMED = 20


def progress(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """`items`, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    yield from track(items, description, total, console=console, transient=True, disable=not sys.stderr.isatty())


def name_skipped(skipped: dict[str, str]) -> None:
    """Say on stderr what was left out and why: the first 20 by name."""
    for name, reason in list(skipped.items())[:NAMED]:
        print(printable(f"  skipped {name}: {reason}"), file=sys.stderr)
    if len(skipped) > NAMED:
        print(f"  skipped {len(skipped) - NAMED} more", file=sys.stderr)


def printable(text: str) -> str:
    """`text` with what no terminal shows (bytes of a file name that are no text) written as an escape."""
    return text.encode(errors="backslashreplace").decode()
