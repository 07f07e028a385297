"""A build again: of the same corpus or another, after one that was cut off, killed, or could not begin."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from parrot_dist import storage
from parrot_dist.errors import UserError
from shards import build
from tests.clips import call, contents, run, settings, write_clips
from tests.waiting import wait_until


@pytest.fixture
def corpus(tmp_path):
    return write_clips(tmp_path / "mini")


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


def test_a_build_that_cannot_be_planned_leaves_the_one_before_as_it_is(corpus, tmp_path):
    run(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    chosen = settings(corpus, tmp_path / "out", "seed=1")
    found = build.survey(chosen)
    shutil.rmtree(corpus)
    with pytest.raises(UserError, match="there is no such file"):
        build.build(chosen, found)
    assert contents(tmp_path / "out") == before


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


def test_a_place_that_workers_do_not_share_is_an_error(corpus, tmp_path, monkeypatch):
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda url, data: None if url.endswith("1.tar") else write(url, data))
    with pytest.raises(UserError, match=r"shard-000001\.tar is not there as it was written"):
        run(corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "index.parquet").exists()


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
