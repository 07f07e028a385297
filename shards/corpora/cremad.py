"""CREMA-D: 91 actors say 12 sentences with six emotions; `AudioWAV/1001_DFA_ANG_XX.wav`.

The name holds actor, sentence, intended emotion and level; the level is not used. One file was called
1040_ITH_SAD_X.wav until 2022, and is so in copies. The same clips as MP3 are left out.

H. Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Trans. Affective Computing 5(4), 2014;
https://github.com/CheyneyComputerScience/CREMA-D
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, by_name

NAME = re.compile(
    r"(?:^|/)(10(?:0[1-9]|[1-8]\d|9[01]))_([A-Z]{3})_([A-Z]{3})_(?:LO|MD|HI|XX|(?<=1040_ITH_SAD_)X)\.wav$"
)
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
SENTENCES = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by their names."""
    return by_name(files, _describe)


def _describe(path: str) -> Clip | Stray:
    if path.endswith(".mp3"):
        return Stray(path, "the same clip is in AudioWAV")
    match = NAME.search(path)
    if not match or match[2] not in SENTENCES or match[3] not in EMOTIONS:
        return Stray(path, "not of the form <actor 1001 to 1091>_<sentence>_<emotion>_<level>.wav")
    actor, sentence, emotion = match.groups()
    return Clip(path, EMOTIONS[emotion], actor, "cremad", "en", SENTENCES[sentence])
