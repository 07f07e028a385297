"""From a corpus folder to shards and index: always the same bytes, nothing lost in silence, and back from the tars."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

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
from tests.waiting import wait_until

SPEAKERS, LABELS, TAKES = ("anna", "ben", "cleo"), ("anger", "joy"), 4
CLIPS = len(SPEAKERS) * len(LABELS) * TAKES


@pytest.fixture
def corpus(tmp_path):
    """24 clips in a folder a label: tones of various lengths, rates and channels."""
    rng = np.random.default_rng(0)
    number = 0
    for label in LABELS:
        (tmp_path / "mini" / label).mkdir(parents=True)
        for speaker in SPEAKERS:
            for take in range(TAKES):
                rate = (8000, 16000, 22050)[number % 3]
                samples = 0.2 * rng.standard_normal((rate // 4 + 100 * number, 1 + number % 2))
                soundfile.write(tmp_path / "mini" / label / f"{speaker}_{take}.wav", samples, rate)
                number += 1
    return tmp_path / "mini"


def settings(corpus, out, *words):
    return build.parse(["corpus=folder", f"source={corpus}", f"out={out}", "shard_mb=0.05", *words])


def run(corpus, out, *words):
    chosen = settings(corpus, out, *words)
    return build.build(chosen, build.survey(chosen))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["shards.build", *map(str, words)])
    return build.main()


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


def test_the_second_run_says_that_all_is_done(corpus, tmp_path, monkeypatch, capsys):
    words = ["corpus=folder", f"source={corpus}", f"out={tmp_path / 'out'}"]
    assert call(monkeypatch, *words) == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert call(monkeypatch, *words) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'out'}: already built\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


@pytest.mark.parametrize("loss", ["index.parquet", "build.json", "shard-000001.tar"])
def test_a_build_that_was_cut_off_or_damaged_is_made_whole(corpus, tmp_path, loss):
    run(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / loss).unlink()
    chosen = settings(corpus, tmp_path / "out")
    found = build.survey(chosen)
    assert not build.is_built(chosen.out, found.digest)
    build.build(chosen, found)
    assert contents(tmp_path / "out") == before
    assert build.is_built(chosen.out, found.digest)


def test_a_build_that_dies_leaves_no_index_behind(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "out")
    write = storage.write_bytes

    def die(url, data):
        if url.endswith("shard-000001.tar"):
            raise KeyboardInterrupt
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", "seed=1")
    assert not (tmp_path / "out" / "index.parquet").exists()


def cut_off(monkeypatch, name):
    """Let the next write of a file of this name be the end of the program; gives the names written."""
    write, names = storage.write_bytes, []

    def write_or_die(url, data):
        names.append(url.rpartition("/")[2])
        if names[-1] == name:
            raise KeyboardInterrupt
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", write_or_die)
    return names


@pytest.mark.parametrize("last", ["shard-000000.tar", "shard-000002.tar", "shard-000002.tar.json", "index.parquet"])
def test_a_build_that_was_cut_off_goes_on_and_ends_with_the_same_bytes(corpus, tmp_path, monkeypatch, last):
    made, _ = run(corpus, tmp_path / "whole")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with monkeypatch.context() as patch:
        cut_off(patch, last)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "out")
    there = {path.name for path in (tmp_path / "out" / "building").glob("*")}
    written = cut_off(monkeypatch, "")
    run(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    tars = {name for name in written if name.endswith(".tar")}
    assert tars == {name for name in made.shard_sizes if f"{name}.json" not in there}
    assert len(tars) < len(made.shard_sizes) or last == "shard-000000.tar"


def test_a_build_that_was_killed_within_a_write_or_before_its_last_step_leaves_nothing_behind(
    corpus, tmp_path, monkeypatch, capsys
):
    run(corpus, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, target: 1 / 0)  # what was written stays beside its place
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path / "out")
    assert any(path.is_file() for path in (tmp_path / "out").iterdir())
    delete = storage.delete
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", lambda url: 1 / 0 if url.endswith("building") else delete(url))
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path / "out")
    assert call(monkeypatch, "corpus=folder", f"source={corpus}", f"out={tmp_path / 'out'}", "shard_mb=0.05") == 0
    assert "already built" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_build_process_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    corpus, out = tmp_path / "long", tmp_path / "out"
    rng = np.random.default_rng(0)
    (corpus / "joy").mkdir(parents=True)
    for number in range(240):
        soundfile.write(corpus / "joy" / f"anna_{number}.wav", 0.2 * rng.standard_normal((44100, 2)), 44100)
    words = ["corpus=folder", f"source={corpus}", f"out={out}", "shard_mb=0.2"]
    with subprocess.Popen([sys.executable, "-m", "shards.build", *words]) as process:
        try:
            wait_until(lambda: process.poll() is not None or len(list(out.glob("building/*.json"))) > 2, poll_s=0.001)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    done = {
        path.name: path.stat().st_mtime_ns
        for path in out.glob("*.tar")
        if (out / f"building/{path.name}.json").exists()
    }
    assert done
    assert not (out / "index.parquet").exists()
    assert call(monkeypatch, *words) == 0
    made, _ = run(corpus, tmp_path / "whole", "shard_mb=0.2")
    assert len(done) < len(made.shard_sizes)
    assert done == {name: (out / name).stat().st_mtime_ns for name in done}
    assert contents(out) == contents(tmp_path / "whole")


def test_a_shard_that_got_lost_in_the_meantime_is_made_again(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_off(patch, "index.parquet")
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "out")
    (tmp_path / "out" / "shard-000001.tar").unlink()
    (tmp_path / "out" / "shard-000002.tar").write_bytes(b"cut")
    run(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_another_build_left_half_done_is_not_taken_over(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "fresh", "seed=1")
    with monkeypatch.context() as patch:
        cut_off(patch, "index.parquet")
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "out")
    run(corpus, tmp_path / "out", "seed=1")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def rewrite(path):
    """Another sound in a file of the same size."""
    samples, rate = soundfile.read(path, always_2d=True)
    size = path.stat().st_size
    soundfile.write(path, samples[::-1], rate)
    assert path.stat().st_size == size


def test_a_file_that_was_rewritten_at_the_same_size_is_built_again(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    rewrite(corpus / "joy" / "anna_0.wav")
    chosen = settings(corpus, tmp_path / "out")
    found = build.survey(chosen)
    assert not build.is_built(chosen.out, found.digest)
    before = contents(tmp_path / "out")
    build.build(chosen, found)
    run(corpus, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") != before


def test_a_build_that_was_cut_off_does_not_go_on_with_other_audio(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        cut_off(patch, "index.parquet")
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "out")
    rewrite(corpus / "joy" / "anna_0.wav")
    run(corpus, tmp_path / "out")
    run(corpus, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_copy_of_the_corpus_gives_the_same_shards_and_index(corpus, tmp_path):
    copy = tmp_path / "elsewhere" / corpus.name
    shutil.copytree(corpus, copy)
    for path in copy.rglob("*.wav"):
        os.utime(path, (0, 0))
    run(corpus, tmp_path / "a")
    run(copy, tmp_path / "b")
    for name in contents(tmp_path / "a").keys() - {"build.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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


def test_a_place_that_workers_do_not_share_is_an_error(corpus, tmp_path, monkeypatch):
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda url, data: None if url.endswith("1.tar") else write(url, data))
    with pytest.raises(UserError, match=r"shard-000001\.tar is not there as it was written"):
        run(corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "index.parquet").exists()


def test_the_help_has_every_setting_with_type_default_and_meaning(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        call(monkeypatch, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "corpus which corpus it is, or which layout: cremad, emodb, folder, iemocap" in shown
    assert "(str; must be given)" in shown
    assert "(float, above 0; default 4.0)" in shown
    assert "(str, one of peak, none; default peak)" in shown
    assert "(int; default 0)" in shown


def test_other_settings_build_again_and_leave_no_old_shards(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    run(corpus, tmp_path / "fresh", "shard_mb=1")
    assert not build.is_built(str(tmp_path / "out"), build.survey(settings(corpus, "x", "shard_mb=1")).digest)
    (tmp_path / "out" / "README.md").write_text("mine")
    run(corpus, tmp_path / "out", "shard_mb=1")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") | {"README.md": b"mine"}


def test_a_changed_file_or_label_is_another_input(corpus):
    before = build.survey(settings(corpus, "x")).digest
    (corpus / "joy" / "anna_0.wav").rename(corpus / "anger" / "anna_9.wav")
    assert build.survey(settings(corpus, "x")).digest != before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["corpos=folder"], "did you mean corpus"),
        (["corpus=foldr", "source={corpus}", "out=x"], "did you mean folder"),
        (["corpus=folder", "out=x"], "source=... must be given"),
        (["corpus=folder", "source=/nowhere/at/all", "out=x"], "no files"),
        (["corpus=folder", "source={corpus}", "out=x", "shard_mb=big"], "shard_mb=big"),
        (["corpus=folder", "source={corpus}", "out=x", "shard_mb=0"], "above 0"),
        (["corpus=folder", "source={corpus}", "out=x", "normalise=loud"], "must be one of peak, none"),
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
