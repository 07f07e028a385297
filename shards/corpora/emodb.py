"""Emo-DB: ten actors say ten German sentences with seven emotions; `wav/03a01Fa.wav`.

The name holds speaker, sentence, emotion (the first letter of its German name) and version. Of the English names that
the documentation gives to A ("anxiety/fear") the shorter is taken.

F. Burkhardt et al., "A Database of German Emotional Speech", Interspeech 2005; http://emodb.bilderbar.info/docu/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, by_name

NAME = re.compile(r"(?:^|/)(03|08|09|1[0-6])([ab]\d\d)([A-Z])[a-z]?\.wav$")
EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips by their names."""
    return by_name(files, _describe)


def _describe(path: str) -> Clip | Stray:
    match = NAME.search(path)
    if not match or match[2] not in SENTENCES or match[3] not in EMOTIONS:
        return Stray(path, "not of the form <speaker><sentence><emotion><version>.wav, as in 03a01Fa.wav")
    speaker, sentence, emotion = match.groups()
    return Clip(path, EMOTIONS[emotion], speaker, "emodb", "de", SENTENCES[sentence])
