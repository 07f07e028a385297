"""Corpora, encoder families and fusion heads by name: this project's, and what installed packages add to them.

Both are entry points, a name and `module:attribute` (docs/extending.md). This project's are written down in the code
and not in its package metadata, since a Ray job runs from an uploaded folder, which has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from parrot_dist.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """The entry points of one group; iterating gives their names, indexing imports one.

    Args:
        what: what a person gives such a name to, for messages.
        group: of the entry points of other packages.
        built_in: name -> `module:attribute` in this project.
    """

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        self._what, self._group = what, group
        self._built_in = [EntryPoint(name, value, group) for name, value in built_in.items()]

    def __iter__(self) -> Iterator[str]:
        """The names, this project's first."""
        return iter(dict.fromkeys(point.name for point in self._points()))

    def __getitem__(self, name: str) -> T:
        """What `name` stands for.

        Raises:
            UserError: nothing, or two things, or something that cannot be imported; says which package it is from.
        """
        found = [point for point in self._points() if point.name == name]
        if not found:
            near = nearest(name, self)
            hint = f"did you mean {near}?" if near else f"it is one of {', '.join(self)}"
            raise UserError(f"{self._what}: there is no {name!r}; {hint}")
        if len(found) > 1:
            raise UserError(f"{self._what}: {name!r} is offered twice, by {' and '.join(map(_origin, found))}")
        try:
            return cast(T, found[0].load())
        except Exception as error:  # importing runs any code, which fails in any way
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self._what}: {name!r}, {_origin(found[0])}, cannot be imported ({reason})") from error

    def _points(self) -> list[EntryPoint]:
        return [*self._built_in, *sorted(entry_points(group=self._group), key=lambda point: point.name)]


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name if point.dist else 'this project'}"
