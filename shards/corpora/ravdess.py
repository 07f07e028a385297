"""RAVDESS: 24 actors say two sentences with eight emotions; `Actor_01/03-01-06-01-02-01-12.wav`.

The name holds modality (03 audio only), channel (01 speech, 02 song), emotion, intensity (01 normal, 02 strong, which
neutral does not have), statement, repetition and actor. Song is left out.

S. R. Livingstone, F. A. Russo, "The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS)", PLoS ONE
13(5), 2018; https://zenodo.org/records/1188976
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, by_name

NAME = re.compile(r"(?:^|/)03-0([12])-0([1-8])-0([12])-0([12])-0[12]-(0[1-9]|1\d|2[0-4])\.wav$")
FOLDER = re.compile(r"(?:^|/)Actor_(\d+)/")
SONG = "2"
STRONG = "2"
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door", "Dogs are sitting by the door")


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by their names."""
    return by_name(files, _describe)


def _describe(path: str) -> Clip | Stray:
    match = NAME.search(path)
    if not match:
        return Stray(path, "not of the form 03-<channel>-<emotion>-<intensity>-<statement>-<repetition>-<actor>.wav")
    channel, emotion, intensity, statement, actor = match.groups()
    label = EMOTIONS[int(emotion) - 1]
    if channel == SONG:
        return Stray(path, "song, not speech")
    if label == "neutral" and intensity == STRONG:
        return Stray(path, "neutral is never strong")
    if any(int(folder) != int(actor) for folder in FOLDER.findall(path)):
        return Stray(path, f"in the folder of another actor than {actor}")
    return Clip(path, label, actor, "ravdess", "en", STATEMENTS[int(statement) - 1])
