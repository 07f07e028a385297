"""MELD: utterances from the series Friends; audio taken out of the videos of MELD.Raw, beside them or in folders alike.

    train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv      Utterance, Speaker, Emotion, Dialogue_ID, Utterance_ID
    train_splits/dia0_utt0.wav                                   or train/dia0_utt0.wav
    dev_splits_complete/dia0_utt0.wav                            or dev/...
    output_repeated_splits_test/dia0_utt0.wav                    or test/...

docs/corpora.md has the command that takes the audio out. The fold is the official part: train, dev or test. The speaker
is the name of the role; roles such as "Waiter" or "All" may be several people.

S. Poria et al., "MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations", ACL 2019;
https://github.com/declare-lab/MELD
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from shards.corpora import Clip, Stray, is_audio
from shards.tables import REPEATED, find_table, read_rows

NAME = re.compile(r"(?:^|/|_)(train|dev|test)(?:_splits)?(?:_complete)?/dia(\d+)_utt(\d+)\.wav$")
TABLE = "{part}_sent_emo.csv"
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
PARTS = ("train", "dev", "test")


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips of the three tables.

    Raises:
        UserError: there is no such table, or a column is missing.
    """
    audio: dict[tuple[str, ...], str] = {}
    for path in filter(is_audio, files):
        match = NAME.search(path)
        if not match:
            yield Stray(path, "not of the form <part>/dia<number>_utt<number>.wav")
        elif audio.setdefault(match.groups(), path) != path:
            yield Stray(path, f"there is {audio[match.groups()]} too")
    named: set[str] = set()
    for part in PARTS:
        table = TABLE.format(part=part)
        for row in read_rows(source, find_table(source, files, table), COLUMNS):
            utterance = (part, row["Dialogue_ID"], row["Utterance_ID"])
            name = "{}/dia{}_utt{}.wav".format(*utterance)
            if name in named:
                yield Stray(f"{table}: {name}", REPEATED)
                continue
            named.add(name)
            found = audio.pop(utterance, None)
            yield _describe(found, row, part) if found else Stray(name, f"in {table}, but there is no such file")
    yield from (Stray(path, "not in the table of its part") for path in audio.values())


def _describe(path: str, row: Mapping[str, str], part: str) -> Clip | Stray:
    label, speaker = row["Emotion"], row["Speaker"]
    if not label or not speaker:
        return Stray(path, f"without an emotion or a speaker in {TABLE.format(part=part)}")
    return Clip(path, label, speaker, "meld", "en", row["Utterance"], part)
