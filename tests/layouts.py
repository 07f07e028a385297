"""Miniatures of the paper's corpora in the layouts in which they are distributed, with any sound in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from parrot_dist.data.audio import SAMPLE_RATE
from shards.corpora import cremad, emodb

WaveOf = Callable[[str, str, int], npt.NDArray[np.float32]]
"""(speaker, emotion as the reader names it, take) -> samples (N,) float32 at 16 kHz."""

LEVELS = ("XX", "LO", "MD", "HI")
MESD_EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
WORDS = ("abajo", "adios", "arriba", "ayer", "dentro", "gracias", "lento", "tarde")


def noise(speaker: str, emotion: str, take: int) -> npt.NDArray[np.float32]:
    """A tenth of a second of noise: a `WaveOf` for tests that do not listen."""
    rng = np.random.default_rng([*f"{speaker} {emotion}".encode(), take])
    return rng.uniform(-0.1, 0.1, SAMPLE_RATE // 10).astype(np.float32)


def make_cremad(
    folder: Path, wave_of: WaveOf = noise, speakers: Sequence[str] = ("1001", "1091"), takes: int = 1
) -> int:
    """CREMA-D with six emotions times `takes` (at most 48) clips a speaker; returns the number of clips."""
    texts = list(cremad.SENTENCES)
    clips = [
        (f"AudioWAV/{speaker}_{texts[take % 12]}_{code}_{LEVELS[take // 12]}.wav", wave_of(speaker, emotion, take))
        for speaker in speakers
        for code, emotion in cremad.EMOTIONS.items()
        for take in range(takes)
    ]
    return _write(folder, clips)


def make_emodb(folder: Path, wave_of: WaveOf = noise, speakers: Sequence[str] = ("03", "16"), takes: int = 1) -> int:
    """Emo-DB with seven emotions times `takes` (at most 260) clips a speaker; returns the number of clips."""
    texts = list(emodb.SENTENCES)
    clips = [
        (f"wav/{speaker}{texts[take % 10]}{code}{chr(ord('a') + take // 10)}.wav", wave_of(speaker, emotion, take))
        for speaker in speakers
        for code, emotion in emodb.EMOTIONS.items()
        for take in range(takes)
    ]
    return _write(folder, clips)


def make_mesd(folder: Path, wave_of: WaveOf = noise, speakers: Sequence[str] = ("C", "F", "M"), takes: int = 1) -> int:
    """MESD with six emotions times `takes` clips for each kind of voice; returns the number of clips."""
    clips = []
    for voice in speakers:
        for emotion in MESD_EMOTIONS:
            for take in range(takes):
                word = WORDS[take // 2 % len(WORDS)] + str(take // 16 or "")
                name = f"{emotion.capitalize()}_{voice}_{'AB'[take % 2]}_{word}.wav"
                clips.append((f"Mexican Emotional Speech Database (MESD)/{name}", wave_of(voice, emotion, take)))
    return _write(folder, clips)


def _write(folder: Path, clips: Sequence[tuple[str, npt.NDArray[np.float32]]]) -> int:
    for name, wave in clips:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, wave, SAMPLE_RATE, subtype="PCM_16")
    return len(clips)
