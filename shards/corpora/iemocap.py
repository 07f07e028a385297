"""IEMOCAP: five sessions of two actors, improvised and scripted; the release as it unpacks, `Session1` to `Session5`.

    Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M000.wav    the clip of one turn
    Session1/dialog/EmoEvaluation/Ses01F_impro01.txt                 "[start - end]<tab>turn<tab>label<tab>[v, a, d]"
    Session1/dialog/transcriptions/Ses01F_impro01.txt                "turn [start-end]: text"

The speaker is the session with the letter of the turn (the letter beside the session is who wears the markers). The
label is what most of the annotators said; turns on which they do not agree (xxx) are left out. The fold is the session.

C. Busso et al., "IEMOCAP: Interactive emotional dyadic motion capture database", Language Resources and Evaluation
42(4), 2008; https://sail.usc.edu/iemocap/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial

from shards.corpora import Clip, Stray, by_name
from shards.tables import read_texts

CLIP = re.compile(r"(?:^|/)(Session[1-5])/sentences/wav/[^/]+/((Ses0[1-5])[FM]_\w+_([FM])\d+)\.wav$")
TABLE = re.compile(r"(?:^|/)Session[1-5]/dialog/(EmoEvaluation|transcriptions)/Ses[^/]+\.txt$")
LABEL = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\w+)\t(\w+)\t\[", re.MULTILINE)
TEXT = re.compile(r"^(\w+) \[[\d.-]+\]:(.*)$", re.MULTILINE)
NO_AGREEMENT = "xxx"
EMOTIONS = {
    "ang": "anger",
    "dis": "disgust",
    "exc": "excited",
    "fea": "fear",
    "fru": "frustration",
    "hap": "happiness",
    "neu": "neutral",
    "oth": "other",
    "sad": "sadness",
    "sur": "surprise",
}


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips of the sentences, labelled by the tables of their dialogues."""
    labels: dict[str, str] = {}
    texts: dict[str, str] = {}
    for path, content in read_texts(source, filter(TABLE.search, files)):
        if "/EmoEvaluation/" in path:
            labels.update(LABEL.findall(content))
        else:
            texts.update(TEXT.findall(content))
    return by_name(files, partial(_describe, labels, texts))


def _describe(labels: Mapping[str, str], texts: Mapping[str, str], path: str) -> Clip | Stray:
    match = CLIP.search(path)
    if not match:
        return Stray(path, "not of the form Session<n>/sentences/wav/<dialogue>/<turn>.wav")
    session, turn, pair, letter = match.groups()
    label = labels.get(turn)
    if label == NO_AGREEMENT:
        return Stray(path, "the annotators do not agree (xxx)")
    if label not in EMOTIONS:
        return Stray(path, f"EmoEvaluation has {f'the label {label}' if label else 'no label'} for it")
    return Clip(path, EMOTIONS[label], pair + letter, "iemocap", "en", texts.get(turn, "").strip(), session)
