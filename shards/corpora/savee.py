"""SAVEE: four British men say 15 sentences per emotion; `AudioData/DC/sa01.wav`.

The folder is the speaker; the letters of the name are the emotion, its digits the sentence. A copy with all files in
one folder, as in `DC_sa01.wav`, is read too. The sentences themselves do not come with the audio.

S. Haq, P. J. B. Jackson, "Speaker-dependent audio-visual emotion recognition", AVSP 2009; `AudioData/Info.txt`;
http://kahlan.eps.surrey.ac.uk/savee/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, is_audio

NAME = re.compile(r"(?:^|/)(DC|JE|JK|KL)[/_](sa|su|[adfhn])\d\d\.wav$")
EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by their folders and names."""
    return map(_describe, filter(is_audio, files))


def _describe(path: str) -> Clip | Stray:
    match = NAME.search(path)
    if not match:
        return Stray(path, "not of the form <DC, JE, JK or KL>/<emotion><number>.wav")
    speaker, emotion = match.groups()
    return Clip(path, EMOTIONS[emotion], speaker, "savee", "en")
