"""MSP-Podcast: turns from podcasts; the release as it unpacks.

    Labels/labels_consensus.csv              FileName, EmoClass, ..., SpkrID, Gender, Split_Set
    Audios/MSP-PODCAST_0001_0008.wav         in that folder or one below it
    Transcripts/MSP-PODCAST_0001_0008.txt    for most of the turns

Releases before 1.10 spell it labels_concensus.csv. Later ones bring tables and turns of earlier releases along in
Previous_releases_information, which are left out.

The fold is the Split_Set: Train, Development or, in early releases, Validation, Test1, Test2. Turns without a consensus
(X) are left out, and so is Test3, whose labels are not published. Turns whose speaker is not known share the speaker
"Unknown".

R. Lotfian, C. Busso, "Building naturalistic emotionally balanced speech corpus by retrieving emotional speech from
existing podcast recordings", IEEE Trans. Affective Computing 10(4), 2019; readme.txt of the release;
https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from shards.corpora import Clip, Stray, is_audio
from shards.tables import REPEATED, find_table, read_rows, read_texts

TABLES = ("labels_consensus.csv", "labels_concensus.csv")
EARLIER = "Previous_releases_information"
COLUMNS = ("FileName", "EmoClass", "SpkrID", "Split_Set")
NO_AGREEMENT = "X"
HIDDEN = "Test3"
EMOTIONS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
}


def read(source: str, files: Mapping[str, int]) -> Iterator[Clip | Stray]:
    """The clips of the consensus table.

    Raises:
        UserError: there is no such table, or a column is missing.
    """
    current = {path: size for path, size in files.items() if EARLIER not in path.split("/")}
    yield from (Stray(path, "of an earlier release") for path in filter(is_audio, files) if path not in current)
    audio: dict[str, str] = {}
    for path in filter(is_audio, current):
        if audio.setdefault(PurePosixPath(path).name, path) != path:
            yield Stray(path, f"there is {audio[PurePosixPath(path).name]} too")
    said = read_texts(source, (path for path in current if "Transcripts" in path.split("/")[:-1]))
    texts = {PurePosixPath(path).stem: text.strip() for path, text in said}
    table = find_table(source, current, *TABLES)
    named: set[str] = set()
    for row in read_rows(source, table, COLUMNS):
        name = row["FileName"]
        if name in named:
            yield Stray(f"{table}: {name}", REPEATED)
            continue
        named.add(name)
        found = audio.pop(name, None)
        yield _describe(found, row, texts) if found else Stray(name, f"in {table}, but there is no such file")
    yield from (Stray(path, f"not in {table}; the labels of Test3 are not published") for path in audio.values())


def _describe(path: str, row: Mapping[str, str], texts: Mapping[str, str]) -> Clip | Stray:
    code, speaker, fold = row["EmoClass"], row["SpkrID"], row["Split_Set"]
    if fold == HIDDEN:
        return Stray(path, "of Test3, whose labels are not published")
    if code == NO_AGREEMENT:
        return Stray(path, "the annotators do not agree (X)")
    if code not in EMOTIONS or not speaker:
        return Stray(path, f"EmoClass {code!r}, SpkrID {speaker!r} in its row")
    text = texts.get(PurePosixPath(path).stem, "")
    return Clip(path, EMOTIONS[code], speaker, "msp_podcast", "en", text, fold)
