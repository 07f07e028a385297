"""Speaker-independent splits: which utterances train, choose and test."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from parrot_dist.config import Split
from parrot_dist.data.index import Index, Strings
from parrot_dist.data.plan import Rows
from parrot_dist.errors import UserError


@dataclass(frozen=True)
class Parts:
    """Rows of the index in each part, ascending; the speakers of the three are disjoint."""

    train: Rows
    validation: Rows
    test: Rows


def split_speakers(index: Index, split: Split, seed: int) -> Parts:
    """Deal the speakers of each language in turn to the folds; hold out a share of the training speakers.

    The same for every fold number: fold k's test speakers are the same in every run with this seed.

    Raises:
        UserError: there are not enough speakers to fill every part.
    """
    speaker_of = np.array([f"{c}/{s}" for c, s in zip(index.corpus, index.speaker, strict=True)])
    fold_of = _deal(speaker_of, index.language, split.folds, seed)
    training = [name for name, fold in fold_of.items() if fold != split.fold]
    held_out = max(1, round(split.validation * len(training)))
    # Every n-th of the dealt order, so that the validation speakers come from all languages and folds.
    validation = {training[i * len(training) // held_out] for i in range(held_out)}
    test = {name for name, fold in fold_of.items() if fold == split.fold}
    train = set(training) - validation
    if not (train and test):
        raise UserError(
            f"data.split: {len(fold_of)} speakers cannot fill {split.folds} folds and a validation part; "
            "lower data.split.folds"
        )
    return Parts(*(np.flatnonzero(np.isin(speaker_of, sorted(part))) for part in (train, validation, test)))


def _deal(speaker_of: Strings, language_of: Strings, folds: int, seed: int) -> dict[str, int]:
    """Speaker -> fold, in the order of dealing: languages one after another, shuffled within each."""
    by_language: dict[str, list[str]] = defaultdict(list)
    for speaker, language in sorted(set(zip(speaker_of.tolist(), language_of.tolist(), strict=True))):
        by_language[language].append(speaker)
    rng = np.random.Generator(np.random.PCG64(seed))
    dealt = [name for names in by_language.values() for name in rng.permutation(np.array(names)).tolist()]
    return {name: position % folds for position, name in enumerate(dict.fromkeys(dealt))}
