"""From a corpus folder to shards and index: always the same bytes, nothing lost in silence, and back from the tars."""

import csv
import io
import json
import os
import re
import sys

import numpy as np
import pytest
import soundfile
import webdataset
from hypothesis import example, given
from hypothesis import strategies as st

from parrot_dist import storage
from parrot_dist.data import audio, index
from parrot_dist.errors import UserError
from shards import build, corpora, shard
from shards import index as shards_index
from tests.clips import CLIPS, LABELS, SPEAKERS, call, contents, run, settings, write_clips


@pytest.fixture
def corpus(tmp_path):
    return write_clips(tmp_path / "mini")


def test_the_same_corpus_gives_the_same_bytes_at_any_parallelism(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "a")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    run(corpus, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) > 4


def test_the_plain_webdataset_reader_opens_the_shards(corpus, tmp_path):
    made, _ = run(corpus, tmp_path / "out")
    shards = [str(tmp_path / "out" / name) for name in made.shard_sizes]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("torch"))
    assert [sample["__key__"] for sample in samples] == list(made.key)
    assert [sample["json"]["label"] for sample in samples] == list(made.label)
    assert set(samples[0]) >= {"flac", "json"}


def test_every_range_of_the_index_reads_its_own_sample(corpus, tmp_path):
    made, skipped = run(corpus, tmp_path / "out")
    assert (len(made), skipped) == (CLIPS, {})
    index.check_index(str(tmp_path / "out"), made)
    for row in range(len(made)):
        start = int(made.offset[row])
        place = str(tmp_path / "out" / made.shard[row])
        data = storage.read_bytes(place, start, start + int(made.size[row]))
        facts = json.loads(index.parse_members(data, made.key[row])["json"])
        waveform = index.read_sample(data, made.key[row])
        source = audio.decode((corpus / facts["source"]).read_bytes())
        np.testing.assert_allclose(waveform, source / np.abs(source).max(), atol=2**-15)
        assert len(waveform) == made.samples[row] == facts["samples"]
        assert facts["source"].startswith(f"{made.label[row]}/{made.speaker[row]}_")


def test_amplitude_can_be_kept(corpus, tmp_path):
    made, _ = run(corpus, tmp_path / "out", "normalise=none")
    data = (tmp_path / "out" / made.shard[0]).read_bytes()[: made.size[0]]
    assert np.abs(index.read_sample(data, made.key[0])).max() != pytest.approx(1.0, abs=1e-3)


def test_each_speaker_lies_in_one_run_and_the_labels_are_mixed(corpus, tmp_path):
    made, _ = run(corpus, tmp_path / "out")
    assert np.count_nonzero(made.speaker[1:] != made.speaker[:-1]) == len(SPEAKERS) - 1
    assert np.count_nonzero(made.label[1:] != made.label[:-1]) > len(SPEAKERS) * (len(LABELS) - 1)
    other, _ = run(corpus, tmp_path / "other", "seed=1")
    assert list(other.key) != list(made.key)
    assert set(other.key) == set(made.key)


def test_the_index_comes_back_from_the_tars_alone(corpus, tmp_path):
    made, _ = run(corpus, tmp_path / "out")
    before = (tmp_path / "out" / "index.parquet").read_bytes()
    (tmp_path / "out" / "index.parquet").unlink()
    rebuilt, skipped = shards_index.rebuild(str(tmp_path / "out"))
    assert (tmp_path / "out" / "index.parquet").read_bytes() == before
    assert (rebuilt.digest, skipped) == (made.digest, {})


def test_broken_files_are_named_and_the_others_built(corpus, tmp_path, monkeypatch, capsys):
    (corpus / "joy" / "anna_0.wav").write_bytes(b"no audio at all")
    soundfile.write(corpus / "joy" / "anna_1.wav", np.zeros(0), 16000)
    (corpus / "stray.wav").write_bytes(b"")
    assert call(monkeypatch, "corpus=folder", f"source={corpus}", f"out={tmp_path / 'out'}") == 0
    shown = capsys.readouterr()
    assert "joy/anna_0.wav: not a readable audio file" in shown.err
    assert "joy/anna_1.wav: the audio is empty" in shown.err
    assert "stray.wav: not of the form" in shown.err
    assert f"{CLIPS - 2} clips" in shown.out
    assert "3 speakers" in shown.out
    assert "3 skipped" in shown.out
    assert "anger 12 (55%), joy 10 (45%)" in shown.out
    assert set(json.loads((tmp_path / "out" / "build.json").read_text())["skipped"]) == {
        "joy/anna_0.wav",
        "joy/anna_1.wav",
        "stray.wav",
    }


def test_a_corpus_of_broken_files_is_an_error(corpus, tmp_path, monkeypatch, capsys):
    for path in corpus.rglob("*.wav"):
        path.write_bytes(b"no audio")
    assert call(monkeypatch, "corpus=folder", f"source={corpus}", f"out={tmp_path / 'out'}") == 2
    assert f"none of its {CLIPS} clips can be read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.parquet").exists()


def test_shards_are_near_the_size_that_is_asked_for(corpus, tmp_path):
    made, _ = run(corpus, tmp_path / "out")
    sizes = list(made.shard_sizes.values())
    largest = made.size.max()
    assert all(0.05e6 - largest < size < 0.05e6 + 2 * largest for size in sizes[:-1])


@given(st.lists(st.floats(0, 10)), st.floats(0.1, 20))
def test_every_clip_goes_into_one_shard_and_every_shard_but_the_last_is_full(sizes, limit):
    runs = build.fill([(number, size) for number, size in enumerate(sizes)], limit)
    assert [number for run in runs for number in run] == list(range(len(sizes)))
    full = [sum(sizes[number] for number in run) >= limit for run in runs]
    assert all(full[:-1])
    assert not any(sum(sizes[number] for number in run[:-1]) >= limit for run in runs)


def test_the_help_has_every_setting_with_type_default_and_meaning(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        call(monkeypatch, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "corpus which corpus it is, or which layout: cremad, emodb, folder, iemocap" in shown
    assert "(str; must be given)" in shown
    assert "(float, above 0; default 4.0)" in shown
    assert "(str, one of peak, none; default peak)" in shown
    assert "(int, 0 or more; default 0)" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["corpos=folder"], "did you mean corpus"),
        (["corpus=foldr", "source={corpus}", "out=x"], "did you mean folder"),
        (["corpus=folder", "out=x"], "source=... must be given"),
        (["corpus=folder", "source=/nowhere/at/all", "out=x"], "no files"),
        (["corpus=folder", "source={corpus}", "out=x", "shard_mb=big"], "shard_mb=big"),
        (["corpus=folder", "source={corpus}", "out=x", "shard_mb=0"], "above 0"),
        (["corpus=folder", "source={corpus}", "out=x", "shard_mb=nan"], "must be above 0"),
        (["corpus=folder", "source={corpus}", "out=x", "seed=-1"], "seed=-1: must be 0 or more"),
        (["corpus=folder", "source={corpus}", "out=x", "normalise=loud"], "must be one of peak, none"),
        (["corpus=folder", "source={corpus}", "out=s3:/bucket/x"], "write it with two slashes and a bucket"),
        (["corpus=folder", "source=s3:/bucket/x", "out=x"], "s3:/bucket/x: write it with two slashes and a bucket"),
        (["corpus=spoken", "source={corpus}", "out=x"], "metadata.csv"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(corpus, monkeypatch, capsys, words, told):
    assert call(monkeypatch, *(word.format(corpus=corpus) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error


def test_two_files_with_one_key_are_not_mixed_up(corpus, tmp_path):
    (corpus / "joy" / "ben_0.flac").write_bytes(audio.encode_flac(np.full(1600, 0.5, np.float32)))
    made, skipped = run(corpus, tmp_path / "out")
    assert len(made) == CLIPS
    assert any("has the same key as" in reason for reason in skipped.values())


@pytest.mark.parametrize("path", ["a/b.wav", "ein/Ärger mit.punkt.wav", "../../etc/x.wav", "a/" + "long" * 60 + ".wav"])
def test_keys_suit_any_tar_and_any_reader(path):
    key = shard.make_key(corpora.Clip(path, "joy", "anna", "mini", "en"))
    assert len(key) <= shard.MAX_KEY
    assert key.replace("-", "").replace("_", "").isalnum()
    assert key.isascii()
    assert index.split_name(f"{key}.flac") == (key, "flac")


@example(["愤怒/001", "高兴/001"])
@example(["joy/anna", "joy-anna"])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), min_size=2, unique=True))
def test_distinct_paths_have_distinct_keys(paths):
    keys = {shard.make_key(corpora.Clip(f"{path}.wav", "joy", "anna", "mini", "en")) for path in paths}
    assert len(keys) == len(paths)
    assert max(map(len, keys)) <= shard.MAX_KEY


def test_labels_in_another_script_keep_all_clips(corpus, tmp_path):
    (corpus / "anger").rename(corpus / "愤怒")
    (corpus / "joy").rename(corpus / "高兴")
    made, skipped = run(corpus, tmp_path / "out")
    assert (len(made), skipped) == (CLIPS, {})


@pytest.mark.parametrize("name", [b"joy/ben_f\xfcr.wav", b"w\xfctend/ben_1.wav", b"joy/b\xfcn_1.wav"])
def test_a_name_that_is_no_text_is_skipped_and_shown(corpus, tmp_path, monkeypatch, capsys, name):
    path = os.fsdecode(name)  # in Latin-1, as old archives have them
    (corpus / path).parent.mkdir(exist_ok=True)
    (corpus / path).write_bytes((corpus / "joy" / "ben_0.wav").read_bytes())
    _, skipped = run(corpus, tmp_path / "out")
    assert skipped == {path: "its name is not UTF-8"}
    assert call(monkeypatch, "corpus=folder", f"source={corpus}", f"out={tmp_path / 'again'}") == 0
    shown = capsys.readouterr()
    assert f"skipped {path.encode(errors='backslashreplace').decode()}: its name is not UTF-8" in shown.err
    assert f"{CLIPS} clips" in shown.out


def test_a_reason_may_hold_a_name_that_is_no_text(corpus, tmp_path, monkeypatch, capsys):
    for folder in (b"\xfc", b"\xfd", b"good"):
        (tmp_path / "emodb" / os.fsdecode(folder)).mkdir(parents=True)
        name = "03a01Wa.wav" if folder == b"good" else "03a01Fa.wav"
        (tmp_path / "emodb" / os.fsdecode(folder) / name).write_bytes((corpus / "joy" / "ben_0.wav").read_bytes())
    assert call(monkeypatch, "corpus=emodb", f"source={tmp_path / 'emodb'}", f"out={tmp_path / 'out'}") == 0
    assert r"there is \udcfc/03a01Fa.wav too" in capsys.readouterr().out


def test_a_table_describes_any_layout(corpus, tmp_path):
    (corpus / "metadata.csv").write_text(
        "speaker,path,label,language,text,fold\nzoe,joy/anna_0.wav,glee,fr,Bonjour,dev\n"
    )
    made, skipped = run(corpus, tmp_path / "out")
    assert (list(made.label), list(made.speaker), list(made.language)) == (["glee"], ["zoe"], ["fr"])
    assert list(made.fold) == ["dev"]
    assert shards_index.rebuild(str(tmp_path / "out"))[0].digest == made.digest
    assert len(skipped) == CLIPS - 1


def test_rows_that_fit_nothing_are_strays(corpus):
    rows = [("joy/anna_0.wav", "joy", ""), ("joy/gone.wav", "joy", "anna"), ("../secret.wav", "joy", "anna")]
    with (corpus / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker"), *rows])
    entries = list(corpora.find("folder")(str(corpus), storage.list_files(str(corpus))))
    assert all(isinstance(entry, corpora.Stray) for entry in entries)
    reasons = {entry.path: entry.reason for entry in entries}
    assert "without a label or a speaker" in reasons["joy/anna_0.wav"]
    assert "no such file" in reasons["joy/gone.wav"]
    assert "no such file" in reasons["../secret.wav"]
    assert reasons["anger/ben_0.wav"] == "not in metadata.csv"


def test_a_table_without_its_columns_is_an_error(corpus):
    (corpus / "metadata.csv").write_text("file,emotion\na.wav,joy\n")
    with pytest.raises(UserError, match="no column path, label, speaker; it has file, emotion"):
        build.survey(settings(corpus, "x"))


class Screen(io.StringIO):
    """What stands on a terminal, with the signs that move its cursor."""

    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_and_nowhere_else(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    words = ["corpus=folder", f"source={corpus}", f"out={tmp_path / 'out'}"]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Screen())
        assert call(patch, *words, "shard_mb=0.05") == 0
        shown = sys.stderr.getvalue()
    assert re.search(r"building .*100%", shown)
    assert call(monkeypatch, *words, "shard_mb=0.1") == 0
    assert capsys.readouterr().err == ""
