"""TESS: two Toronto actresses say "Say the word ..." with seven emotions; `OAF_back_angry.wav`, in any folders.

The name holds the speaker (OAF the older, YAF the younger), the word and the emotion. One file, OA_bite_neutral.wav,
lacks a letter of its speaker.

M. K. Pichora-Fuller, K. Dupuis, "Toronto emotional speech set (TESS)", 2020, doi:10.5683/SP2/E8H2MF
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, by_name

NAME = re.compile(r"(?:^|/)(OAF|YAF|OA(?=_bite_neutral))_([A-Za-z-]+)_(angry|disgust|fear|happy|neutral|ps|sad)\.wav$")
EMOTIONS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "ps": "pleasant surprise",
    "sad": "sadness",
}


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by their names."""
    return by_name(files, _describe)


def _describe(path: str) -> Clip | Stray:
    match = NAME.search(path)
    if not match:
        return Stray(path, "not of the form <OAF or YAF>_<word>_<emotion>.wav")
    speaker, word, emotion = match.groups()
    return Clip(path, EMOTIONS[emotion], f"{speaker[:2]}F", "tess", "en", f"Say the word {word}")
