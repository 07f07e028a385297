"""Each reader on a miniature of its corpus: names, folders and tables as they are distributed, sound left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from parrot_dist import storage
from parrot_dist.errors import UserError
from shards import build, corpora
from shards.corpora import Clip, Stray
from tests import layouts


def lay_out(folder: Path, **tables: str) -> None:
    """Write a text file for every name, and an empty one where there is no text (readers never open audio)."""
    for name, text in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")


def read(corpus: str, folder: Path) -> tuple[dict[str, Clip], dict[str, str]]:
    """Clips and reasons of strays, by path; every audio file is one or the other."""
    files = storage.list_files(str(folder))
    entries = list(corpora.find(corpus)(str(folder), files))
    assert len({entry.path for entry in entries}) == len(entries)
    assert {entry.path for entry in entries} >= {path for path in files if corpora.is_audio(path)}
    clips = {entry.path: entry for entry in entries if isinstance(entry, Clip)}
    assert set(clips) <= set(files)
    return clips, {entry.path: entry.reason for entry in entries if isinstance(entry, Stray)}


def test_crema_d(tmp_path: Path) -> None:
    """File names: https://github.com/CheyneyComputerScience/CREMA-D, README.md, and its AudioWAV."""
    names = ["1001_DFA_ANG_XX.wav", "1040_ITH_SAD_X.wav", "1091_WSI_NEU_XX.wav"]
    wrong = ["1092_DFA_ANG_XX.wav", "1001_DFB_ANG_XX.wav", "1001_DFA_JOY_XX.wav", "1001_DFA_ANG.wav", "._1001.wav"]
    wrong += ["1001_DFA_ANG_X.wav"]
    lay_out(tmp_path, **{f"AudioWAV/{name}": "" for name in names + wrong})
    lay_out(tmp_path, **{"AudioMP3/1001_DFA_ANG_XX.mp3": "", "SentenceFilenames.csv": '"","Filename"\n'})
    clips, strays = read("cremad", tmp_path)
    first = "AudioWAV/1001_DFA_ANG_XX.wav"
    assert clips[first] == Clip(first, "anger", "1001", "cremad", "en", "Don't forget a jacket")
    assert [(clip.speaker, clip.label) for clip in clips.values()] == [
        ("1001", "anger"),
        ("1040", "sad"),
        ("1091", "neutral"),
    ]
    assert strays.pop("AudioMP3/1001_DFA_ANG_XX.mp3") == "the same clip is in AudioWAV"
    assert set(strays) == {f"AudioWAV/{name}" for name in wrong}


def test_emo_db(tmp_path: Path) -> None:
    """File names: http://emodb.bilderbar.info/docu/."""
    names = ["wav/03a01Fa.wav", "wav/16b10Wb.wav", "wav/08a05Nd.wav", "wav/12b03Ac.wav"]
    wrong = ["wav/04a01Fa.wav", "wav/03a03Fa.wav", "wav/03a01Xa.wav", "wav/03a01Fab.wav"]
    lay_out(tmp_path, **dict.fromkeys([*names, *wrong, "lablaut/03a01Fa.lablaut", "erkennung.txt"], ""))
    clips, strays = read("emodb", tmp_path)
    assert clips[names[0]] == Clip(names[0], "happiness", "03", "emodb", "de", "Der Lappen liegt auf dem Eisschrank.")
    assert {path: (clip.label, clip.speaker) for path, clip in clips.items()} == {
        "wav/03a01Fa.wav": ("happiness", "03"),
        "wav/08a05Nd.wav": ("neutral", "08"),
        "wav/12b03Ac.wav": ("fear", "12"),
        "wav/16b10Wb.wav": ("anger", "16"),
    }
    assert set(strays) == set(wrong)


def test_mesd(tmp_path: Path) -> None:
    """File names: https://data.mendeley.com/datasets/cy34mh68j9/5."""
    folder = "Mexican Emotional Speech Database (MESD)"
    names = ["Anger_C_A_abajo.wav", "Happiness_F_B_masaje.wav", "Neutral_M_A_ayer.wav"]
    wrong = ["Joy_C_A_abajo.wav", "Anger_X_A_abajo.wav", "Anger_C_C_abajo.wav", "Anger_C_A_.wav"]
    lay_out(tmp_path, **{f"{folder}/{name}": "" for name in names + wrong})
    clips, strays = read("mesd", tmp_path)
    first = f"{folder}/Anger_C_A_abajo.wav"
    assert clips[first] == Clip(first, "anger", "C", "mesd", "es", "abajo")
    assert [clip.speaker for clip in clips.values()] == ["C", "F", "M"]
    assert set(strays) == {f"{folder}/{name}" for name in wrong}


def test_ravdess(tmp_path: Path) -> None:
    """File names: https://zenodo.org/records/1188976."""
    names = ["03-01-08-02-02-01-07.wav", "Actor_12/03-01-06-01-02-01-12.wav", "Actor_24/03-01-01-01-01-02-24.wav"]
    wrong = ["Actor_25/03-01-06-01-02-01-25.wav", "Actor_01/03-01-09-01-02-01-01.wav", "Actor_01/clip.wav"]
    wrong += ["Actor_24/03-01-01-02-01-02-24.wav", "Actor_12/03-01-06-01-02-01-13.wav"]
    song = "Audio_Song_Actors_01-24/Actor_01/03-02-06-01-02-01-01.wav"
    lay_out(tmp_path, **dict.fromkeys([*names, *wrong, song, "Actor_12/01-01-06-01-02-01-12.mp4"], ""))
    clips, strays = read("ravdess", tmp_path)
    assert list(clips.values()) == [
        Clip(names[0], "surprised", "07", "ravdess", "en", "Dogs are sitting by the door"),
        Clip(names[1], "fearful", "12", "ravdess", "en", "Dogs are sitting by the door"),
        Clip(names[2], "neutral", "24", "ravdess", "en", "Kids are talking by the door"),
    ]
    assert strays.pop(song) == "song, not speech"
    assert set(strays) == set(wrong)


def test_savee(tmp_path: Path) -> None:
    """Folders and names: AudioData/Info.txt of http://kahlan.eps.surrey.ac.uk/savee/."""
    names = ["AudioData/DC/a01.wav", "AudioData/JE/sa15.wav", "AudioData/KL/n30.wav", "ALL/JK_su02.wav"]
    wrong = ["AudioData/XX/a01.wav", "AudioData/DC/b01.wav", "AudioData/DC/a1.wav"]
    wrong += ["AudioData/DC/a16.wav", "AudioData/DC/su00.wav", "AudioData/DC/n31.wav"]
    lay_out(tmp_path, **dict.fromkeys([*names, *wrong, "AudioData/Info.txt"], ""))
    clips, strays = read("savee", tmp_path)
    assert {path: (clip.speaker, clip.label) for path, clip in clips.items()} == {
        "ALL/JK_su02.wav": ("JK", "surprise"),
        "AudioData/DC/a01.wav": ("DC", "anger"),
        "AudioData/JE/sa15.wav": ("JE", "sadness"),
        "AudioData/KL/n30.wav": ("KL", "neutral"),
    }
    assert set(strays) == set(wrong)


def test_tess(tmp_path: Path) -> None:
    """File names: https://doi.org/10.5683/SP2/E8H2MF."""
    names = ["OAF_back_angry.wav", "YAF_pleasant_surprised/YAF_youth_ps.wav", "OAF_neutral/OA_bite_neutral.wav"]
    wrong = ["XAF_back_angry.wav", "OAF_back_surprised.wav", "OA_back_angry.wav", "YA_bite_neutral.wav"]
    lay_out(tmp_path, **dict.fromkeys([*names, *wrong], ""))
    clips, strays = read("tess", tmp_path)
    assert clips[names[0]] == Clip(names[0], "anger", "OAF", "tess", "en", "Say the word back")
    assert (clips[names[1]].speaker, clips[names[1]].label) == ("YAF", "pleasant surprise")
    assert (clips[names[2]].speaker, clips[names[2]].label) == ("OAF", "neutral")
    assert set(strays) == set(wrong)


IEMOCAP_LABELS = (
    "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
    "C-E2:\tNeutral;\t()\nC-F1:\tNeutral;\t(curious)\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
    "[10.0100 - 11.3925]\tSes01F_impro01_F001\txxx\t[2.5000, 2.5000, 2.5000]\nC-E2:\tAnger;\t()\n\n"
    "[7.5712 - 10.4750]\tSes01F_impro01_M000\tfru\t[2.0000, 3.0000, 3.5000]\n"
)
IEMOCAP_TEXT = (
    "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\r\n"
    "Ses01F_impro01_M000 [007.5712-010.4750]: Do you have your forms?\r\n"
    "Ses01F_impro01_MXX0 [014.0000-014.5000]: Yeah.\r\n"
)


def test_iemocap(tmp_path: Path) -> None:
    """Folders, tables and transcripts of the release: https://sail.usc.edu/iemocap/."""
    clip = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{}.wav"
    wavs = [clip.format(turn) for turn in ("F000", "F001", "F002", "M000")]
    scripted = "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_F017.wav"
    dialogue = "Session1/dialog/wav/Ses01F_impro01.wav"
    lay_out(
        tmp_path,
        **dict.fromkeys([*wavs, scripted, dialogue], ""),
        **{
            "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": IEMOCAP_LABELS,
            "Session1/dialog/EmoEvaluation/Categorical/Ses01F_impro01_e2_cat.txt": "Ses01F_impro01_F000 :Anger; ()\n",
            "Session1/dialog/EmoEvaluation/._Ses01F_impro01.txt": "\0",
            "Session1/dialog/transcriptions/Ses01F_impro01.txt": IEMOCAP_TEXT,
            "Session5/dialog/EmoEvaluation/Ses05M_script01_1b.txt": (
                "[1.0000 - 2.0000]\tSes05M_script01_1b_F017\texc\t[4.0000, 4.0000, 3.0000]\n"
            ),
        },
    )
    clips, strays = read("iemocap", tmp_path)
    assert list(clips.values()) == [
        Clip(wavs[0], "neutral", "Ses01F", "iemocap", "en", "Excuse me.", "Session1"),
        Clip(wavs[3], "frustration", "Ses01M", "iemocap", "en", "Do you have your forms?", "Session1"),
        Clip(scripted, "excited", "Ses05F", "iemocap", "en", "", "Session5"),
    ]
    assert strays == {
        wavs[1]: "the annotators do not agree (xxx)",
        wavs[2]: "EmoEvaluation has no label for it",
        dialogue: "not of the form Session<n>/sentences/wav/<dialogue>/<turn>.wav",
    }


MSP_HEAD = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"


@pytest.mark.parametrize("table", ["Labels/labels_consensus.csv", "label/labels_concensus.csv"])
def test_msp_podcast(tmp_path: Path, table: str) -> None:
    """readme.txt of the releases: https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html."""
    rows = [
        "MSP-PODCAST_0001_0008.wav,N,2.2,4.0,2.6,30,Male,Test1",
        "MSP-PODCAST_0002_0033.wav,A,5.9,2.5,5.1,Unknown,Unknown,Train",
        "MSP-PODCAST_0003_0001.wav,X,4.0,4.0,4.0,39,Male,Development",
        "MSP-PODCAST_0004_0001.wav,Q,4.0,4.0,4.0,39,Male,Train",
        "MSP-PODCAST_0005_0001.wav,H,4.0,4.0,4.0,39,Male,Train",
        "MSP-PODCAST_test3_0002.wav,N,4.0,4.0,4.0,39,Male,Test3",
    ]
    audio = [f"Audios/MSP-PODCAST_{turn}.wav" for turn in ("0001_0008", "0002_0033", "0003_0001", "0004_0001")]
    hidden = [f"Audios/MSP-PODCAST_test3_000{number}.wav" for number in (1, 2)]
    earlier = "Previous_releases_information/files_removed_from_prev_versions/v1.10_removed_files/MSP-PODCAST_9.wav"
    lay_out(
        tmp_path,
        **dict.fromkeys([*audio, *hidden, earlier, "readme.txt", "Partitions.txt"], ""),
        **{
            table: MSP_HEAD + "\n".join(rows) + "\n",
            f"Previous_releases_information/previous_releases_info/v1.10/{table}": MSP_HEAD,
            "Transcripts/MSP-PODCAST_0001_0008.txt": "And so it was.\n",
        },
    )
    clips, strays = read("msp_podcast", tmp_path)
    assert list(clips.values()) == [
        Clip(audio[0], "neutral", "30", "msp_podcast", "en", "And so it was.", "Test1"),
        Clip(audio[1], "angry", "Unknown", "msp_podcast", "en", "", "Train"),
    ]
    assert strays[audio[2]] == "the annotators do not agree (X)"
    assert "'Q'" in strays[audio[3]]
    assert "no such file" in strays["MSP-PODCAST_0005_0001.wav"]
    assert "not in" in strays[hidden[0]]
    assert strays[hidden[1]] == "of Test3, whose labels are not published"
    assert strays[earlier] == "of an earlier release"


MELD_HEAD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
MELD_ROW = ',4,7,"00:20:57,256","00:21:00,049"\n'


@pytest.mark.parametrize("folders", [("train_splits", "dev_splits_complete", "output_repeated_splits_test"), ()])
def test_meld(tmp_path: Path, folders: tuple[str, ...]) -> None:
    """Tables, and the folders of MELD.Raw: https://github.com/declare-lab/MELD, README.md."""
    train, dev, test = folders or ("train", "dev", "test")
    stray = [f"{test}/final_videos_testdia0_utt0.wav", f"{test}/._dia0_utt0.wav", f"{dev}/dia9_utt9.wav"]
    wavs = [f"{train}/dia0_utt0.wav", f"{train}/dia0_utt1.wav", f"{dev}/dia0_utt0.wav", f"{test}/dia0_utt0.wav"]
    lay_out(
        tmp_path,
        **dict.fromkeys([*wavs, *stray, f"{train}/dia0_utt0.mp4"], ""),
        **{
            "train/train_sent_emo.csv": MELD_HEAD
            + f'1,"Oh my God, he\u2019s lost it.",Phoebe,sadness,negative,0,0{MELD_ROW}'
            + f"2,What?,Monica,surprise,negative,0,1{MELD_ROW}3,Gone.,Ross,anger,negative,125,3{MELD_ROW}",
            "dev_sent_emo.csv": MELD_HEAD + f"1,Hey!,All,joy,positive,0,0{MELD_ROW}",
            "test_sent_emo.csv": MELD_HEAD + f"1,Hi.,Joey,neutral,neutral,0,0{MELD_ROW}",
        },
    )
    clips, strays = read("meld", tmp_path)
    assert clips[wavs[0]] == Clip(wavs[0], "sadness", "Phoebe", "meld", "en", "Oh my God, he\u2019s lost it.", "train")
    found = {path: (clip.speaker, clip.label, clip.fold) for path, clip in clips.items()}
    assert found[wavs[1]] == ("Monica", "surprise", "train")
    assert found[wavs[2]] == ("All", "joy", "dev")
    assert found[wavs[3]] == ("Joey", "neutral", "test")
    assert len(found) == 4
    assert set(strays) == {*stray, "train/dia125_utt3.wav"}


def test_equal_copies_of_a_table_are_one(tmp_path: Path) -> None:
    tables = {
        f"{part}_sent_emo.csv": MELD_HEAD + f"1,Hey!,Joey,joy,positive,0,0{MELD_ROW}"
        for part in ("train", "dev", "test")
    }
    lay_out(
        tmp_path,
        **{"train/dia0_utt0.wav": ""},
        **{f"{folder}/{name}": text for folder in ("MELD.Raw", "MELD/data/MELD") for name, text in tables.items()},
    )
    assert list(read("meld", tmp_path)[0]) == ["train/dia0_utt0.wav"]


@pytest.mark.parametrize(
    ("corpus", "clip", "tables"),
    [
        ("meld", "train/dia0_utt0.wav", {"train_sent_emo.csv": MELD_HEAD + 2 * f"1,Hey!,Joey,joy,,0,0{MELD_ROW}"}),
        ("msp_podcast", "MSP_1.wav", {"labels_consensus.csv": MSP_HEAD + 2 * "MSP_1.wav,N,2,4,2,30,Male,Train\n"}),
        ("folder", "a.wav", {"metadata.csv": "path,label,speaker\na.wav,joy,kim\na.wav,anger,kim\n"}),
    ],
)
def test_a_clip_of_two_rows_is_taken_once_and_not_named_as_left_out(
    tmp_path: Path, corpus: str, clip: str, tables: dict[str, str]
) -> None:
    lay_out(tmp_path, **{clip: ""}, **({"dev_sent_emo.csv": MELD_HEAD, "test_sent_emo.csv": MELD_HEAD} | tables))
    clips, strays = read(corpus, tmp_path)
    assert (list(clips), list(strays)) == ([clip], [f"{next(iter(tables))}: {clip}"])


SESSION = {
    "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": IEMOCAP_LABELS,
    "Session1/dialog/transcriptions/Ses01F_impro01.txt": IEMOCAP_TEXT,
}


@pytest.mark.parametrize(
    ("corpus", "name", "tables"),
    [
        ("cremad", "AudioWAV/1001_DFA_ANG_XX.wav", {}),
        ("emodb", "wav/03a01Fa.wav", {}),
        ("mesd", "Anger_C_A_abajo.wav", {}),
        ("ravdess", "Actor_12/03-01-06-01-02-01-12.wav", {}),
        ("savee", "AudioData/DC/a01.wav", {}),
        ("tess", "OAF_angry/OAF_back_angry.wav", {}),
        ("iemocap", "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav", SESSION),
    ],
)
def test_of_a_corpus_that_was_unpacked_twice_each_recording_is_taken_once(
    tmp_path: Path, corpus: str, name: str, tables: dict[str, str]
) -> None:
    copies = [name, f"again/{name}", f"once/more/{name}"]
    lay_out(tmp_path, **dict.fromkeys(copies, ""), **tables)
    clips, strays = read(corpus, tmp_path)
    first, *others = sorted(copies)
    assert list(clips) == [first]
    assert strays == dict.fromkeys(others, f"there is {first} too")


def test_one_name_of_several_speakers_is_several_recordings_and_two_spellings_of_a_name_are_one(tmp_path: Path) -> None:
    names = ["ALL/DC_a01.wav", "ALL/JE_a01.wav", "AudioData/DC/a01.wav", "AudioData/JK/a01.wav"]
    lay_out(tmp_path, **dict.fromkeys(names, ""))
    clips, strays = read("savee", tmp_path)
    assert {path: clip.speaker for path, clip in clips.items()} == {names[0]: "DC", names[1]: "JE", names[3]: "JK"}
    assert strays == {names[2]: f"there is {names[0]} too"}


def test_two_files_for_one_turn_are_not_mixed_up(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        **dict.fromkeys(["Audios/a/MSP_1.wav", "Audios/b/MSP_1.wav"], ""),
        **{"Labels/labels_consensus.csv": MSP_HEAD + "MSP_1.wav,N,2,4,2,30,Male,Train\n"},
    )
    clips, strays = read("msp_podcast", tmp_path)
    assert list(clips) == ["Audios/a/MSP_1.wav"]
    assert strays == {"Audios/b/MSP_1.wav": "there is Audios/a/MSP_1.wav too"}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({}, r"needs one labels_consensus\.csv or labels_concensus\.csv, and there are none"),
        ({"a/labels_consensus.csv": "", "b/labels_consensus.csv": "\n"}, "there are a/.*, b/.*, which differ"),
        ({"labels_consensus.csv": "FileName,EmoClass\n"}, "no column SpkrID, Split_Set; it has FileName, EmoClass"),
        ({"labels_consensus.csv": f'"{MSP_HEAD * 3000}'}, r"labels_consensus\.csv: not a CSV table .* stray quotation"),
        (
            {"labels_consensus.csv": f'{MSP_HEAD}a.wav,N,"2{",3" * 70000}\n'},
            r"labels_consensus\.csv: not a CSV table .* line 1\)",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error(tmp_path: Path, tables: dict[str, str], told: str) -> None:
    lay_out(tmp_path, **{"Audios/MSP-PODCAST_0001_0008.wav": ""}, **tables)
    with pytest.raises(UserError, match=told):
        read("msp_podcast", tmp_path)


@pytest.mark.parametrize(
    ("corpus", "make", "labels", "speakers"),
    [
        ("cremad", layouts.make_cremad, "anger disgust fear happy neutral sad", "1001 1091"),
        ("emodb", layouts.make_emodb, "anger boredom disgust fear happiness neutral sadness", "03 16"),
        ("mesd", layouts.make_mesd, "anger disgust fear happiness neutral sadness", "C F M"),
    ],
)
def test_the_papers_corpora_become_shards(tmp_path: Path, corpus: str, make, labels: str, speakers: str) -> None:
    count = make(tmp_path / "corpus", takes=13)
    settings = build.parse([f"corpus={corpus}", f"source={tmp_path / 'corpus'}", f"out={tmp_path / 'out'}"])
    made, skipped = build.build(settings, build.survey(settings))
    assert (len(made), skipped) == (count, {})
    assert (" ".join(sorted(set(made.label))), " ".join(sorted(set(made.speaker)))) == (labels, speakers)
    assert set(made.corpus) == {corpus}
    assert set(made.fold) == {""}
