"""Audio in every form that people have, and in none."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parrot_dist.data import audio
from parrot_dist.errors import UserError
from tests.corpus import flac_that_claims

pcm16 = hnp.arrays(np.int16, st.integers(1, 2000), elements=st.integers(-32768, 32767))


def encoded(samples, rate=16000, file_format="WAV", subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=file_format, subtype=subtype)
    return file.getvalue()


def tone(rate, seconds=0.5, hertz=440):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@given(pcm16)
def test_flac_keeps_every_16_bit_sample(samples):
    waveform = samples.astype(np.float32) / 32768
    flac = audio.encode_flac(waveform)
    np.testing.assert_array_equal(audio.decode(flac), waveform)
    assert audio.encode_flac(waveform) == flac


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_any_rate_and_depth_becomes_16_khz(rate, subtype):
    waveform = audio.decode(encoded(tone(rate), rate, subtype=subtype))
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 8000) <= 1
    spectrum = np.abs(np.fft.rfft(waveform[:8000]))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=2)
    assert np.abs(waveform).max() == pytest.approx(0.5, abs=0.03)


def test_channels_are_averaged():
    left, right = tone(16000), tone(16000, hertz=700)
    waveform = audio.decode(encoded(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "data", [b"", b"hello", encoded(tone(16000))[:20], encoded(tone(16000), file_format="FLAC")[:9]]
)
def test_what_is_no_audio_is_refused(data):
    with pytest.raises(ValueError, match="not a readable audio file"):
        audio.decode(data)


def test_empty_audio_is_refused():
    with pytest.raises(ValueError, match="empty"):
        audio.decode(encoded(np.zeros(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    samples = tone(16000)
    samples[7] = value
    with pytest.raises(ValueError, match="not finite"):
        audio.decode(encoded(samples, subtype="FLOAT"))


@pytest.mark.parametrize(
    ("minutes", "rate", "channels", "told"),
    [
        (61, 16000, 1, "over an hour"),
        (61, 8000, 1, "over an hour"),
        (61, 48000, 2, "over an hour"),
        (59, 48000, 2, "over 268435456 values; cut the file"),
        (40, 48000, 2, "not a readable audio file"),  # the claim is taken, but not kept
        (59, 16000, 4, "not a readable audio file"),
    ],
)
def test_a_small_file_that_claims_too_much_is_refused_before_it_is_decoded(minutes, rate, channels, told):
    with pytest.raises(ValueError, match=told):
        audio.decode(flac_that_claims(60 * minutes * rate, rate, channels))


def test_a_flac_that_does_not_say_how_long_it_is_gets_told_so():
    with pytest.raises(ValueError, match="does not say how long it is; encode it again"):
        audio.decode(flac_that_claims(0))


def test_a_rate_that_would_blow_up_in_resampling_is_refused():
    with pytest.raises(ValueError, match="over an hour"):
        audio.decode(encoded(np.zeros(8000), rate=1))


def test_load_names_the_file(tmp_path):
    (tmp_path / "notes.wav").write_text("not audio")
    with pytest.raises(UserError, match=r"notes\.wav: not a readable audio file"):
        audio.load(str(tmp_path / "notes.wav"))
    with pytest.raises(UserError, match=r"gone\.wav"):
        audio.load(str(tmp_path / "gone.wav"))
    with pytest.raises(UserError, match=str(tmp_path)):
        audio.load(str(tmp_path))
    (tmp_path / "a.wav").write_bytes(encoded(tone(44100), 44100))
    assert len(audio.load(str(tmp_path / "a.wav"))) == 8000


@given(pcm16)
def test_peak_normalisation_reaches_one_and_leaves_silence_alone(samples):
    waveform = samples.astype(np.float32) / 32768
    peak = np.abs(audio.peak_normalise(waveform)).max()
    assert peak == pytest.approx(1.0) if waveform.any() else peak == 0
