"""Which utterances train, choose and test: folds of speakers, or the parts that a corpus itself comes with."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from parrot_dist.config import Split
from parrot_dist.data.index import Index, Strings
from parrot_dist.data.plan import Rows
from parrot_dist.errors import UserError

PARTITION = {"train": "train", "val": "validation", "dev": "validation", "test": "test", "eval": "test"}
"""How the name of an official part begins, and what the part is for: MELD's `dev`, MSP-Podcast's `Test1`."""


@dataclass(frozen=True)
class Parts:
    """Rows of the index in each part, ascending and disjoint."""

    train: Rows
    validation: Rows
    test: Rows


def split_rows(index: Index, rows: Rows, split: Split, seed: int) -> Parts:
    """The parts of `rows` as `split` wants them; the same for every fold number but for which fold tests.

    By speakers, the speakers of each language are dealt in turn to the folds; by utterances, these. By the corpus, its
    own folds are taken in the order of their names, or its own training, development and test parts, which are then the
    only fold. Where nothing is given for validation, a share of the training speakers is held out, so that a speaker is
    never heard in both; the corpus's own folds may still share speakers with each other.

    Raises:
        UserError: there are not enough speakers to fill every part, or the corpus has no folds of its own.
    """
    speaker_of = _dealt(index, rows, split)
    fold_of = _deal(speaker_of, index.language[rows], split.folds, seed)
    if split.by == "corpus":
        part_of = _official_parts(index.fold[rows], split.fold)
    else:
        part_of = np.array(["test" if fold_of[name] == split.fold else "train" for name in speaker_of], object)
    if "validation" not in part_of:
        training = set(speaker_of[part_of == "train"])
        held_out = _every_nth([name for name in fold_of if name in training], split.validation)
        part_of[(part_of == "train") & np.isin(speaker_of, held_out)] = "validation"
    parts = [np.sort(rows[part_of == part]) for part in ("train", "validation", "test")]
    if not all(len(part) for part in parts) and split.by == "corpus":
        raise UserError(
            "data.split.by: no second speaker of the corpus's own training part can be held out to validate"
        )
    if not all(len(part) for part in parts):
        raise _too_few(len(fold_of), split)
    return Parts(*parts)


def count_folds(index: Index, rows: Rows, split: Split) -> int:
    """How many folds a cross-validation over `rows` has: `split.folds`, or as many as the corpus says.

    Raises:
        UserError: the corpus was to say, and has no folds of its own; or one of them would lack a part, though others
            may have all.
    """
    if split.by == "corpus":
        names = _official_names(index.fold[rows])
        return 1 if _is_partition(names) else len(names)
    dealt = len(set(_dealt(index, rows, split).tolist()))
    largest = -(-dealt // split.folds)
    if dealt < split.folds or dealt - largest < 2:  # one trains, one validates
        raise _too_few(dealt, split)
    return split.folds


def _dealt(index: Index, rows: Rows, split: Split) -> Strings:
    """The speaker of each of `rows`; by utterances, each is as if somebody else had said it."""
    return index.key[rows] if split.by == "utterances" else np.array(index.speakers(rows), object)


def _too_few(dealt: int, split: Split) -> UserError:
    """So many speakers, or utterances, do not fill the parts of the folds."""
    advice = "use data.split.by=utterances" if split.by == "speakers" else "it takes three at least"
    if dealt >= 3:
        advice = f"use data.split.folds={dealt}"
    return UserError(f"data.split: {dealt} {split.by} cannot fill {split.folds} folds and a validation part; {advice}")


def _official_parts(fold_of: Strings, fold: int) -> Strings:
    """What each utterance is for, by the name (n,) of the corpus's own fold or part that it is in."""
    names = _official_names(fold_of)
    if _is_partition(names):
        uses = [[_use(name) for name in names]]
    else:
        uses = [["test" if name == tests else "train" for name in names] for tests in names]
    if fold >= len(uses):
        raise UserError(f"data.split.fold: must be below {len(uses)}; the corpus's own parts are {', '.join(names)}")
    use = dict(zip(names, uses[fold], strict=True))
    return np.array([use[name] for name in fold_of], object)


def _official_names(fold_of: Strings) -> list[str]:
    names = sorted(set(fold_of.tolist()), key=_by_number)
    if "" in names or len(names) < 2:
        raise UserError("data.split.by: the corpus has no folds of its own; use data.split.by=speakers")
    return names


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts "Session10" behind "Session2"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _is_partition(names: list[str]) -> bool:
    """Whether the names are those of parts, and not of folds.

    Raises:
        UserError: of parts, of which one is missing.
    """
    uses = {_use(name) for name in names} - {"unused"}
    if uses and not {"train", "test"} <= uses:
        raise UserError(f"data.split.by: {', '.join(names)} are neither folds nor a training and a test part")
    return bool(uses)


def _use(name: str) -> str:
    return next((use for prefix, use in PARTITION.items() if name.strip().lower().startswith(prefix)), "unused")


def _every_nth(speakers: list[str], share: float) -> list[str]:
    """A `share` of the dealt speakers, at least one and not all, evenly from their order: from all languages and folds.

    Of one speaker it is that one.
    """
    count = max(1, min(round(share * len(speakers)), len(speakers) - 1))
    return [speakers[i * len(speakers) // count] for i in range(count) if speakers]


def _deal(speaker_of: Strings, language_of: Strings, folds: int, seed: int) -> dict[str, int]:
    """Speaker -> fold, in the order of dealing: languages one after another, shuffled within each."""
    by_language: dict[str, list[str]] = defaultdict(list)
    for speaker, language in sorted(set(zip(speaker_of.tolist(), language_of.tolist(), strict=True))):
        by_language[language].append(speaker)
    rng = np.random.Generator(np.random.PCG64(seed))
    dealt = [name for names in by_language.values() for name in rng.permutation(np.array(names)).tolist()]
    return {name: position % folds for position, name in enumerate(dict.fromkeys(dealt))}
