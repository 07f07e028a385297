"""MESD: single Mexican Spanish words with six emotions; `Anger_C_A_abajo.wav`.

The name holds emotion, kind of voice (C child, F female, M male), word list (A or B) and the word, without accents.
It does not say who speaks: the corpus has six children, three women and two men, and tells no more than the kind. So
the three kinds stand for the speakers: a split by speaker then never has one person on both sides, but there cannot be
five folds of them.

M. M. Duville, L. M. Alonso-Valerdi, D. I. Ibarra-Zarate, "Mexican Emotional Speech Database Based on Semantic,
Frequency, Familiarity, Concreteness, and Cultural Shaping of Affective Prosody", Data 6(12), 130, 2021;
https://data.mendeley.com/datasets/cy34mh68j9/5
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, by_name

NAME = re.compile(r"(?:^|/)(Anger|Disgust|Fear|Happiness|Neutral|Sadness)_([CFM])_[AB]_([^/]+)\.wav$")


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by their names."""
    return by_name(files, _describe)


def _describe(path: str) -> Clip | Stray:
    match = NAME.search(path)
    if not match:
        return Stray(path, "not of the form <Emotion>_<C, F or M>_<A or B>_<word>.wav")
    emotion, voice, word = match.groups()
    return Clip(path, emotion.lower(), voice, "mesd", "es", word)
