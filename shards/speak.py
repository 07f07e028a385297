"""`python -m shards.speak FOLDER`: speak a corpus of acted emotions with eSpeak NG, for the demonstration and tests.

It is synthetic speech made by rule. It exercises every stage of the job and is no evidence about emotion in people.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from parrot_dist.errors import exits_cleanly
from shards import espeak, prosody
from shards.console import progress
from shards.prosody import RULES, Speaker

LEVEL = 0.04  # root mean square of neutral speech, as a share of full scale; leaves room for the peaks of anger
SETTINGS = "settings.json"
METADATA = "metadata.csv"

LANGUAGES = {"en": "en-us", "de": "de", "es": "es-419"}  # the paper's three; its Spanish corpus is Mexican

# Variants with a `breath` line are left out: eSpeak NG 1.52 does not repeat their noise from one process to the next.
WOMEN = ["f1", "f4", "Annie", "Andrea", "belinda", "linda", "aunty", "anika", "steph", "steph2", "steph3", "shelby"]
WOMEN += ["grandma", "zac"]
MEN = ["m1", "m2", "m3", "m4", "m5", "m7", "m8", "Alex", "Andy", "Denis", "Hugo", "Lee", "Mario", "boris"]
VARIANTS = [variant for pair in zip(WOMEN, MEN, strict=True) for variant in pair]

SENTENCES = {
    "en": [
        "The red cup stands on the shelf.",
        "They moved the table last week.",
        "The train leaves at half past nine.",
        "She put the letters into the drawer.",
        "Our neighbour has a new bicycle.",
        "The window looks out on the garden.",
        "He will call again on Thursday.",
        "There are seven chairs in the room.",
        "I left the keys beside the lamp.",
        "The shop opens early tomorrow.",
    ],
    "de": [
        "Die rote Tasse steht im Regal.",
        "Der Tisch wurde gestern verschoben.",
        "Der Zug fährt um halb zehn ab.",
        "Sie legt die Briefe in die Lade.",
        "Der Nachbar hat ein neues Fahrrad.",
        "Das Fenster geht zum Garten hinaus.",
        "Er ruft am Donnerstag noch einmal an.",
        "Im Zimmer stehen sieben Stühle.",
        "Die Schlüssel liegen neben der Lampe.",
        "Der Laden macht morgen früh auf.",
    ],
    "es": [
        "La taza roja está en el estante.",
        "Ayer movieron la mesa grande.",
        "El tren sale a las nueve y media.",
        "Ella guarda las cartas en el cajón.",
        "El vecino tiene una bicicleta nueva.",
        "La ventana da al jardín.",
        "Volverá a llamar el jueves.",
        "Hay siete sillas en la sala.",
        "Dejé las llaves junto a la lámpara.",
        "La tienda abre mañana temprano.",
    ],
}


@dataclass(frozen=True)
class Row:
    """One line of metadata.csv."""

    path: str
    label: str
    speaker: str
    language: str
    text: str


@exits_cleanly
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shards.speak", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the corpus goes")
    number = partial(parser.add_argument, type=int, metavar="INT")
    number("--seed", default=0, help="of voices and delivery (default %(default)s)")
    number("--speakers", default=36, help="people, of three languages in turn (default %(default)s)")
    number("--texts", default=6, choices=range(1, 11), help="sentences a speaker says, 1 to 10 (default %(default)s)")
    settings = parser.parse_args()
    if settings.seed < 0 or settings.speakers < 1:
        parser.error("--seed must be 0 or more, and --speakers 1 or more")
    count = speak(settings.folder, settings.seed, settings.speakers, settings.texts)
    print(f"{settings.folder}: {count} utterances spoken" if count else f"{settings.folder}: already spoken")
    return 0


def speak(folder: Path, seed: int, speakers: int, texts: int) -> int:
    """Write the corpus into `folder` as WAV files with metadata.csv; the same settings give the same bytes.

    Returns the number of utterances written: 0 where the folder holds the corpus of these settings already.
    """
    settings = json.dumps({"seed": seed, "speakers": speakers, "texts": texts, "program": _program()})
    done = folder / SETTINGS
    if done.is_file() and done.read_text() == settings:
        return 0
    done.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    people = [make_speaker(seed, number) for number in range(speakers)]
    rows = [row for spoken in _speak_all(folder, seed, texts, people) for row in spoken]
    with (folder / METADATA).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
    done.write_text(settings)
    return len(rows)


def make_speaker(seed: int, number: int) -> Speaker:
    """Speaker `number` of the corpus; languages take turns, and so do women and men within each.

    Past the last variant they start over, each in another language than before and with habits of its own.
    """
    rng = np.random.default_rng([seed, number])
    language = list(LANGUAGES)[number % len(LANGUAGES)]
    return Speaker(
        name=f"{language}{number:03d}",
        language=language,
        voice=f"{LANGUAGES[language]}+{VARIANTS[number % len(VARIANTS)]}",
        pitch=rng.uniform(-1, 1),
        span=rng.uniform(35, 60),
        rate=rng.uniform(160, 185),
        strength=rng.uniform(0.8, 1.1),
        noise=10 ** rng.uniform(-3.5, -3.0),
    )


def _speak_all(folder: Path, seed: int, texts: int, people: list[Speaker]) -> Iterator[list[Row]]:
    """The rows of each speaker, in order.

    Every speaker gets a fresh process: the engine keeps state between sentences, so only that makes a speaker's
    recordings independent of how many processes there are and of who spoke before.
    """
    context = multiprocessing.get_context("spawn")
    processes = min(os.cpu_count() or 1, len(people))
    with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
        spoken = pool.map(partial(speak_one, folder, seed, texts), people)
        yield from progress(spoken, "speaking", len(people))


def speak_one(folder: Path, seed: int, texts: int, speaker: Speaker) -> list[Row]:
    """Write the recordings of one speaker: `texts` sentences, each with every emotion."""
    rng = np.random.default_rng([seed, *speaker.name.encode()])
    sentences = SENTENCES[speaker.language]
    chosen = sorted(rng.choice(len(sentences), texts, replace=False))
    rows = []
    for number in chosen:
        for emotion in RULES:
            path = f"{speaker.name}/{emotion}_{number}.wav"
            (folder / path).parent.mkdir(exist_ok=True)
            soundfile.write(folder / path, say(speaker, emotion, sentences[number], rng), espeak.RATE, subtype="PCM_16")
            rows.append(Row(path, emotion, speaker.name, speaker.language, sentences[number]))
    return rows


def say(speaker: Speaker, emotion: str, sentence: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Samples (N,) float32 at espeak.RATE of `sentence` said by `speaker` in a room with some noise."""
    delivery = prosody.deliver(RULES[emotion], speaker, len(sentence.split()), rng)
    ssml = prosody.mark_up(sentence, delivery.contour)
    raw = espeak.synthesise(ssml, speaker.voice, delivery.pitch, delivery.span, delivery.rate)
    voice = _trim(raw.astype(np.float32))
    voice[1:] += np.float32(delivery.tilt) * voice[:-1]
    voice *= np.float32(LEVEL * 10 ** (delivery.loudness / 20) / np.sqrt(np.mean(voice**2)))
    return voice + np.float32(speaker.noise) * rng.standard_normal(len(voice), dtype=np.float32)


def _trim(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`samples` without the silence at both ends, but for 50 ms of it."""
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    margin = espeak.RATE // 20
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]


def _program() -> str:
    """Digest of the code that makes the sound, so that a changed rule makes a new corpus."""
    sources = [Path(str(module)).read_bytes() for module in (__file__, espeak.__file__, prosody.__file__)]
    return hashlib.sha256(b"".join(sources)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
