"""eSpeak NG through ctypes: text in, samples out. The library and its data come as the wheel `espeakng_loader`."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import numpy.typing as npt

from parrot_dist.errors import UserError

RATE = 22050
NEUTRAL = 50  # where pitch and range stand in an unchanged voice; both go from 0 to MAXIMUM
MAXIMUM = 99
STEPS_PER_SEMITONE = 5.2  # measured on voices m3 and f3: 50 pitch steps up are a factor of 1.74

# From speak_lib.h.
_SYNCHRONOUS = 2
_UTF8_AND_SSML = 0x01 | 0x10
_PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_spoken: list[bytes] = []


def synthesise(ssml: str, voice: str, pitch: int, span: int, rate: int) -> npt.NDArray[np.int16]:
    """Samples (N,) at 22,050 Hz of `ssml`.

    The engine keeps noise and oscillator state between calls, so a recording depends on what its process said
    before: the same calls in the same order from a fresh process give the same samples.

    Args:
        ssml: the text, marked up.
        voice: language and variant, as in "en-us+f3".
        pitch: 0 to 99; 50 is the voice's own.
        span: range of the pitch, 0 (monotone) to 99; 50 is the voice's own.
        rate: words a minute.

    Raises:
        ValueError: there is no such voice.
        UserError: eSpeak NG is not installed.
    """
    library = _library()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"eSpeak NG has no voice {voice!r}")
    for name, value in {"rate": rate, "pitch": pitch, "range": span}.items():
        library.espeak_SetParameter(_PARAMETERS[name], value, 0)
    text = ssml.encode()
    _spoken.clear()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8_AND_SSML, None, None)
    return np.frombuffer(b"".join(_spoken), np.int16)


def _collect(samples: int | None, count: int, _events: int | None) -> int:
    if samples and count > 0:
        _spoken.append(ctypes.string_at(samples, 2 * count))
    return 0


_collector = _Callback(_collect)  # kept alive here: the library holds only its address


@cache
def _library() -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError("the voice is not installed; `pip install parrot-dist[demo]`") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != RATE:
        raise RuntimeError(f"eSpeak NG did not start at {RATE} Hz: espeak_Initialize returned {rate}")
    library.espeak_SetSynthCallback(_collector)
    return library
