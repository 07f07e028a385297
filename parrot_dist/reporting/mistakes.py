"""The mistakes that a model is surest of, to be listened to."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST = 12  # as many as somebody will listen to
AUDIO_BYTES = 2_250_000  # of all recordings in a report; 3 MB as base64


@dataclass(frozen=True)
class Mistake:
    """An utterance taken for something else.

    Attributes:
        confidence: probability of the wrong `prediction`.
        audio: the recording as a data URL; None where it would have made the report too large.
    """

    key: str
    speaker: str
    label: str
    prediction: str
    confidence: float
    audio: str | None


def surest_mistakes(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Which of the utterances with `labels` (N,) and `probabilities` (N, C) are wrong and surest, surest first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:MOST]


def to_urls(recordings: Mapping[int, bytes]) -> dict[int, str]:
    """The FLAC or WAV files among `recordings` as data URLs, in their order, as long as `AUDIO_BYTES` allow."""
    urls, room = {}, AUDIO_BYTES
    for number, data in recordings.items():
        if len(data) <= room:
            room -= len(data)
            kind = "flac" if data.startswith(b"fLaC") else "wav"
            urls[number] = f"data:audio/{kind};base64,{base64.b64encode(data).decode()}"
    return urls
