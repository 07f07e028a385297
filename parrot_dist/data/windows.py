"""Long recordings in overlapping windows, read piece by piece: memory does not grow with the recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soxr

from parrot_dist import storage
from parrot_dist.data.audio import SAMPLE_RATE, Waveform, opened
from parrot_dist.errors import UserError

BLOCK_VALUES = 2**18  # decoded at once, over all channels: some seconds of speech, a megabyte


def read_blocks(url: str) -> Iterator[Waveform]:
    """The pieces, (n,) each, of the waveform that `audio.load` gives for the file at a path or URL, of any length.

    A remote file lies in a temporary file meanwhile.

    Raises:
        UserError: there is no such file, or it is no usable audio; names the file.
    """
    with storage.temporary_copy(url) as path:
        try:
            with opened(path) as file:
                if not file.frames:
                    raise ValueError("the audio is empty")
                for block in _mono_16k(file):
                    if not np.isfinite(block).all():
                        raise ValueError("the audio holds values that are not finite")
                    yield block
        except ValueError as error:
            raise UserError(f"{url}: {error}") from error


def cut(blocks: Iterable[Waveform], size: int, hop: int) -> Iterator[tuple[int, Waveform]]:
    """Windows of `size` samples, one every `hop` samples, of the recording that `blocks` (n,) make up in order.

    The last window ends with the recording: it is moved back, so that it is whole. A recording shorter than a window
    is one window, an empty one is none.

    Args:
        hop: 1 to `size`; nothing between two windows is left out.

    Yields:
        The number of its first sample, and the window (size,).
    """
    kept = np.empty(0, np.float32)
    first = begin = end = 0  # of `kept`, of the next window, of what was read
    for block in blocks:
        kept = np.concatenate([kept, block])
        end += len(block)
        while begin + size <= end:
            yield begin, kept[begin - first : begin - first + size]
            begin += hop
        unneeded = max(0, min(begin, end - size) - first)
        kept, first = kept[unneeded:], first + unneeded
    covered = begin - hop + size if begin else 0
    if covered < end:
        start = max(0, end - size)
        yield start, kept[start - first :]


def _mono_16k(file: Any) -> Iterator[Waveform]:
    resampler = soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1, dtype="float32")
    frames = max(1, BLOCK_VALUES // file.channels)
    for block in file.blocks(frames, dtype="float32", always_2d=True):
        yield resampler.resample_chunk(block.mean(axis=1, dtype=np.float32))
    yield resampler.resample_chunk(np.empty(0, np.float32), last=True)
