"""Audio files in, mono float32 waveforms at 16 kHz out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from parrot_dist import storage
from parrot_dist.errors import UserError

SAMPLE_RATE = 16000
MAX_SECONDS = 3600  # a small file that claims more is damaged or a decompression bomb
MAX_SAMPLES = MAX_SECONDS * SAMPLE_RATE
MAX_VALUES = 2**28  # of all channels, decoded at once: a gibibyte, 46 minutes of stereo at 48 kHz
UNKNOWN_FRAMES = 2**63 - 1  # of a FLAC that was written as a stream

Waveform = npt.NDArray[np.float32]
Memory = Callable[[int], Waveform]
"""Gives memory for a waveform of so many samples."""


def empty(samples: int) -> Waveform:
    """Memory for a waveform (samples,)."""
    return np.empty(samples, np.float32)


@contextmanager
def opened(file: BinaryIO | Path) -> Iterator[Any]:
    """A file as libsndfile reads it, as long as the block lasts.

    Raises:
        ValueError: no audio, also where that shows in the block; or its length is not known.
    """
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.frames == UNKNOWN_FRAMES:
                raise ValueError("its header does not say how long it is; encode it again")
            yield sound
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", "unknown format").rstrip(".")
        raise ValueError(f"not a readable audio file ({reason})") from error


def decode(data: bytes, memory: Memory = empty) -> Waveform:
    """The waveform (N,) in the bytes of an audio file: FLAC, WAV or whatever else libsndfile reads.

    Channels are averaged; other rates than 16 kHz are resampled; the amplitude is left as it is. One channel at
    16 kHz is decoded into what `memory` gives for so many samples.

    Raises:
        ValueError: no audio, empty, over an hour or too large (also when only its header says so), or not finite.
    """
    with opened(io.BytesIO(data)) as file:
        rate = int(file.samplerate)
        described = f"{file.frames} frames of {file.channels} channels at {rate} Hz"
        if file.frames > MAX_SECONDS * rate:
            raise ValueError(f"{described} are over an hour")
        if file.frames * file.channels > MAX_VALUES:
            raise ValueError(f"{described} are over {MAX_VALUES} values; cut the file into shorter ones")
        as_it_is = file.channels == 1 and rate == SAMPLE_RATE
        frames = file.read(dtype="float32", out=memory(file.frames) if as_it_is else None)
        integers = file.subtype.startswith("PCM")
    waveform: Waveform = frames if frames.ndim == 1 else frames.mean(axis=1, dtype=np.float32)
    if rate != SAMPLE_RATE:
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE)
    if not len(waveform):
        raise ValueError("the audio is empty")
    if not integers and not np.isfinite(waveform).all():
        raise ValueError("the audio holds values that are not finite")
    return waveform


def load(url: str) -> Waveform:
    """The waveform (N,) of the audio file at a path or URL, see `decode`.

    Raises:
        UserError: there is no such file, or it is no usable audio; names the file.
    """
    try:
        return decode(storage.read_bytes(url))
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{url}: {error}") from error


def peak_normalise(waveform: Waveform) -> Waveform:
    """`waveform` scaled so that its largest magnitude is 1 (the paper's preparation); silence stays silence."""
    peak = np.abs(waveform).max(initial=0.0)
    return waveform / peak if peak > 0 else waveform


def encode_flac(waveform: Waveform) -> bytes:
    """`waveform` (N,) at 16 kHz as 16-bit FLAC; the same samples give the same bytes."""
    pcm = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
