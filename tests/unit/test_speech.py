"""The spoken corpus: the same bytes for the same seed, and emotions that differ as the literature says."""

import csv
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from parrot_dist.data import audio
from parrot_dist.reporting.prosody import prosody_features
from shards import espeak, prosody, speak

PITCH, DURATION = 0, 13  # of the features


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.wav")}


def test_the_same_seed_gives_the_same_bytes_whoever_else_speaks(tmp_path):
    assert speak.speak(tmp_path / "few", seed=3, speakers=2, texts=1) == 12
    speak.speak(tmp_path / "more", seed=3, speakers=3, texts=1)
    speak.speak(tmp_path / "other", seed=4, speakers=2, texts=1)
    few, more, other = (contents(tmp_path / name) for name in ("few", "more", "other"))
    assert len(few) == 12
    assert few.items() <= more.items()
    assert not set(few.values()) & set(other.values())


def test_the_corpus_is_described_and_spoken_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shards.speak", str(tmp_path / "out"), "--speakers", "1", "--texts", "2"])
    assert speak.main() == 0
    assert "12 utterances spoken" in capsys.readouterr().out
    with (tmp_path / "out" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == set(contents(tmp_path / "out"))
    for text in {row["text"] for row in rows}:  # every text with every emotion: the words say nothing about it
        assert sorted(row["label"] for row in rows if row["text"] == text) == sorted(prosody.RULES)
    for row in rows:
        sound = soundfile.info(tmp_path / "out" / row["path"])
        assert (sound.samplerate, sound.channels, sound.subtype) == (22050, 1, "PCM_16")
        assert 0.6 < sound.duration < 6
    assert speak.main() == 0
    assert "already spoken" in capsys.readouterr().out
    (tmp_path / "out" / "settings.json").write_text("{}")
    assert speak.main() == 0
    assert "12 utterances spoken" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--seed", "-1"), ("--speakers", "0"), ("--speakers", "-3")])
def test_nobody_and_seeds_below_0_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["shards.speak", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit, match="2"):
        speak.main()
    assert "--seed must be 0 or more, and --speakers 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_emotions_move_pitch_and_tempo_as_the_literature_says():
    speaker = speak.make_speaker(0, 3)
    measured = {}
    for emotion in prosody.RULES:
        features = []
        for sentence in speak.SENTENCES[speaker.language][:4]:
            samples = speak.say(speaker, emotion, sentence, np.random.default_rng(0))
            waveform = audio.soxr.resample(samples, espeak.RATE, audio.SAMPLE_RATE)
            features.append(prosody_features(audio.peak_normalise(waveform)))
        measured[emotion] = np.median(features, axis=0)
    pitch = {emotion: values[PITCH] for emotion, values in measured.items()}
    duration = {emotion: values[DURATION] for emotion, values in measured.items()}
    assert pitch["disgust"] < pitch["neutral"] < min(pitch["anger"], pitch["happiness"]) < pitch["fear"]
    assert pitch["sadness"] < pitch["neutral"]
    assert duration["fear"] < duration["anger"] < duration["neutral"] < duration["sadness"] < duration["disgust"]


def test_speakers_differ_and_cover_languages_and_sexes():
    people = [speak.make_speaker(0, number) for number in range(36)]
    assert len({person.name for person in people}) == len({person.voice for person in people}) == 36
    assert len({person.pitch for person in people}) == 36
    for language in speak.LANGUAGES:
        variants = [person.voice.partition("+")[2] for person in people if person.language == language]
        assert len(variants) == 12
        assert sum(variant in speak.WOMEN for variant in variants) == 6


@pytest.mark.parametrize("variant", speak.VARIANTS)
def test_no_variant_has_breath(variant):
    text = (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).read_text(errors="replace")
    assert not any(line.startswith("breath ") for line in text.splitlines())


@pytest.mark.parametrize("emotion", prosody.RULES)
@pytest.mark.parametrize("words", [1, 2, 9])
def test_deliveries_stay_within_what_the_engine_takes(emotion, words):
    rng = np.random.default_rng(0)
    for number in range(50):
        delivery = prosody.deliver(prosody.RULES[emotion], speak.make_speaker(0, number), words, rng)
        assert 0 < delivery.pitch <= espeak.MAXIMUM
        assert 0 <= delivery.span <= espeak.MAXIMUM
        assert 80 <= delivery.rate <= 450  # what eSpeak NG can speak
        assert len(delivery.contour) == words


def test_neutral_speech_has_a_level_contour():
    delivery = prosody.deliver(prosody.RULES["neutral"], speak.make_speaker(0, 0), 5, np.random.default_rng(0))
    assert delivery.contour == (0, 0, 0, 0, 0)


def test_marked_up_text_is_well_formed():
    marked = prosody.mark_up("Salt & pepper", (0, 25, -30))
    assert marked == (
        '<speak><prosody pitch="+0%">Salt</prosody> <prosody pitch="+25%">&amp;</prosody> '
        '<prosody pitch="-30%">pepper</prosody></speak>'
    )


def test_sentences_are_alike_in_number_and_length():
    for sentences in speak.SENTENCES.values():
        assert len(set(sentences)) == 10
        assert all(4 <= len(sentence.split()) <= 9 for sentence in sentences)


def test_an_unknown_voice_is_an_error():
    with pytest.raises(ValueError, match="no voice"):
        espeak.synthesise("<speak>hello</speak>", "xx-nowhere", 50, 50, 175)
