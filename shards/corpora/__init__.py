"""Readers of emotional speech corpora: from the layout in which a corpus is distributed to clips with their labels.

One file a corpus, found by its name: it defines `read`, a `Reader`. A file that fits no rule is a `Stray`, not a guess.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from parrot_dist.registry import Registry

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".aiff", ".aif", ".au")
UNKNOWN_LANGUAGE = "und"  # ISO 639-3: undetermined


@dataclass(frozen=True)
class Clip:
    """One recording, as its corpus describes it."""

    path: str
    """Relative to the corpus."""
    label: str
    """The emotion, by the name that the corpus gives it."""
    speaker: str
    corpus: str
    language: str
    """ISO 639 code; "und" where the corpus does not tell."""
    text: str = ""
    fold: str = ""
    """The corpus's own fold or official part, by its own name ("Session1", "dev"); "" where it has none."""


@dataclass(frozen=True)
class Stray:
    """A file that is left out, and why."""

    path: str
    reason: str


Reader = Callable[[str, Mapping[str, int]], Iterator[Clip | Stray]]
"""(URL of the corpus, its files with their sizes) -> what every audio file is. Only tables are read, never audio."""

READERS: Registry[Reader] = Registry(
    "corpus",
    "parrot_dist.corpora",
    {module.name: f"{__name__}.{module.name}:read" for module in pkgutil.iter_modules(__path__)},
)


def find(name: str) -> Reader:
    """The reader of the corpus called `name`.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    return READERS[name]


def by_name(files: Iterable[str], describe: Callable[[str], Clip | Stray]) -> Iterator[Clip | Stray]:
    """What every audio file is, for a corpus whose file names say it all and are given once for each speaker.

    Of a corpus that was unpacked twice, or that its copy holds in two folders, each recording would count twice and, in
    a split by utterances, train and test alike: of two files of one name the second is left out.
    """
    seen: dict[tuple[str, str], str] = {}
    for path in sorted(filter(is_audio, files)):
        entry = describe(path)
        if isinstance(entry, Clip):
            name = path.rpartition("/")[2].removeprefix(f"{entry.speaker}_")
            first = seen.setdefault((entry.speaker, name), path)
            if first != path:
                entry = Stray(path, f"there is {first} too")
        yield entry


def is_audio(path: str) -> bool:
    """Whether the name is that of an audio file."""
    return path.lower().endswith(AUDIO_SUFFIXES)
