"""SAVEE: four British men say 15 sentences per emotion, and 30 neutral ones; `AudioData/DC/sa01.wav`.

The folder is the speaker; the letters of the name are the emotion, its digits the sentence. A copy with all files in
one folder, as in `DC_sa01.wav`, is read too. The sentences themselves do not come with the audio.

S. Haq, P. J. B. Jackson, "Speaker-dependent audio-visual emotion recognition", AVSP 2009; `AudioData/Info.txt`;
http://kahlan.eps.surrey.ac.uk/savee/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, by_name

NAME = re.compile(r"(?:^|/)(DC|JE|JK|KL)[/_](sa|su|[adfhn])(\d\d)\.wav$")
SENTENCES = 15
NEUTRAL_SENTENCES = 30
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
    return by_name(files, _describe)


def _describe(path: str) -> Clip | Stray:
    match = NAME.search(path)
    if not match:
        return Stray(path, "not of the form <DC, JE, JK or KL>/<emotion><number>.wav")
    speaker, emotion, sentence = match.groups()
    count = NEUTRAL_SENTENCES if emotion == "n" else SENTENCES
    if not 1 <= int(sentence) <= count:
        return Stray(path, f"{EMOTIONS[emotion]} has the sentences 01 to {count}")
    return Clip(path, EMOTIONS[emotion], speaker, "savee", "en")
