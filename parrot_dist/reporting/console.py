"""Text on a rich console as it stands."""

from __future__ import annotations

from rich.console import Console


def plain(console: Console, text: str) -> None:
    """Print `text` as it stands: neither read as markup nor cut."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
