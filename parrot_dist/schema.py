"""What a person must know of a setting: said once, in the schema, for checks, `--help` and the reference alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class About:
    """The meaning of a setting and what its value may be; None and () set no bound.

    A setting with `choices` that holds a list takes any of them.
    """

    meaning: str = ""
    choices: tuple[str, ...] = ()
    above: float | None = None
    least: float | None = None
    below: float | None = None

    @property
    def allowed(self) -> str:
        """The bounds in words, for example "0 or more and below 1"; empty where there are none."""
        bounds = [
            f"one of {', '.join(self.choices)}" if self.choices else "",
            f"above {self.above:g}" if self.above is not None else "",
            f"{self.least:g} or more" if self.least is not None else "",
            f"below {self.below:g}" if self.below is not None else "",
        ]
        return " and ".join(filter(None, bounds))

    def holds(self, value: Any) -> bool:
        """Whether `value`, of the setting's type, keeps the bounds."""
        return (
            (not self.choices or {*(value if isinstance(value, list) else [value])} <= {*self.choices})
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
        )


def setting(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of the schema; what `About` says of it lies in its metadata."""
    about = {"about": About(meaning, tuple(choices), above, least, below)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy(default), metadata=about)
    return field(default=default, metadata=about)


def out_of_bounds(values: Any) -> list[str]:
    """The settings of `values`, of a class of the schema, that do not keep their bounds, as `key: must be ...`."""
    settings = [item for section in sections(type(values)) for item in section.settings]
    return [
        f"{item.key}: must be {item.about.allowed}"
        for item in settings
        if not item.about.holds(attrgetter(item.key)(values))
    ]


@dataclass(frozen=True)
class Setting:
    """A key of the schema: its dotted name, its type as written, its default (MISSING: none) and what is to know."""

    key: str
    type: str
    default: Any
    about: About


@dataclass(frozen=True)
class Section:
    """The settings of one dataclass of the schema: its dotted name ("" at the top), its docstring, its keys."""

    name: str
    meaning: str
    settings: list[Setting]


def sections(schema: type, prefix: str = "") -> Iterator[Section]:
    """Every section with settings of its own, in the order of the schema."""
    own: list[Setting] = []
    nested: list[tuple[type, str]] = []
    # A class's own before those that it inherits: they say what it is for.
    for item in sorted(fields(schema), key=lambda item: item.name not in schema.__annotations__):
        if isinstance(item.default_factory, type) and is_dataclass(item.default_factory):
            nested.append((item.default_factory, f"{prefix}{item.name}."))
            continue
        default = item.default_factory() if callable(item.default_factory) else item.default
        own.append(Setting(f"{prefix}{item.name}", str(item.type), default, item.metadata.get("about", About())))
    if own:
        yield Section(prefix.rstrip("."), (schema.__doc__ or "").strip(), own)
    for part, inner in nested:
        yield from sections(part, inner)
