"""An index for shards that others made: what can be used is found, what cannot is named."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset

from parrot_dist.data import audio, index
from parrot_dist.errors import UserError
from shards import index as shards_index

FLAC = audio.encode_flac(np.full(1600, 0.25, np.float32))
JOY = json.dumps({"label": "joy", "speaker": "anna"}).encode()


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def rebuild(folder):
    made, skipped = shards_index.rebuild(str(folder))
    for row in range(len(made)):
        data = (folder / made.shard[row]).read_bytes()[made.offset[row] :][: made.size[row]]
        assert len(index.read_sample(data, made.key[row])) == made.samples[row]
    return made, skipped


def test_shards_of_webdatasets_own_writer_are_indexed(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"part/clip{number}", "flac": FLAC, "json": {"label": "joy", "speaker": "anna"}})
    made, skipped = rebuild(tmp_path)
    assert (list(made.key), skipped) == ([f"part/clip{number}" for number in range(3)], {})
    assert set(made.language) == {"und"}


def test_long_names_in_extended_headers_are_inside_the_range(tmp_path):
    key = "k" * 150
    write_tar(
        tmp_path / "a.tar", [("first.flac", FLAC), ("first.json", JOY), (f"{key}.flac", FLAC), (f"{key}.json", JOY)]
    )
    made, _ = rebuild(tmp_path)
    assert list(made.key) == ["first", key]


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("good.flac", FLAC),
            ("good.json", JOY),
            ("good.pickle", b"cos\nsystem\n(S'false'\ntR."),
            ("silent.json", JOY),
            ("unlabelled.flac", FLAC),
            ("unlabelled.json", b'{"speaker": "anna"}'),
            ("listed.flac", FLAC),
            ("listed.json", b"[1, 2]"),
            ("torn.flac", FLAC[:20]),
            ("torn.json", JOY),
        ],
    )
    write_tar(tmp_path / "b.tar", [("good.flac", FLAC), ("good.json", JOY)])
    made, skipped = rebuild(tmp_path)
    assert list(made.key) == ["good"]
    assert set(skipped) == {"silent", "unlabelled", "listed", "torn", "b.tar good"}
    assert skipped["b.tar good"] == "its key is also in a.tar"
    assert "no member flac or wav" in skipped["silent"]


def test_a_length_that_cannot_be_is_measured_instead_of_believed(tmp_path):
    claim = json.dumps({"label": "joy", "speaker": "anna", "samples": -5}).encode()
    write_tar(tmp_path / "a.tar", [("k.flac", FLAC), ("k.json", claim)])
    assert list(rebuild(tmp_path)[0].samples) == [1600]


def test_a_sample_without_audio_is_left_out_even_if_its_length_is_told(tmp_path):
    claim = json.dumps({"label": "joy", "speaker": "anna", "samples": 1600}).encode()
    write_tar(tmp_path / "a.tar", [("k.json", claim), ("good.flac", FLAC), ("good.json", JOY)])
    made, skipped = rebuild(tmp_path)
    assert list(made.key) == ["good"]
    assert skipped == {"k": "no member flac or wav"}


def test_a_sample_in_two_pieces_is_not_glued_together(tmp_path):
    write_tar(tmp_path / "a.tar", [("k.flac", FLAC), ("other.flac", FLAC), ("other.json", JOY), ("k.json", JOY)])
    made, skipped = rebuild(tmp_path)
    assert list(made.key) == ["other"]
    assert set(skipped) == {"k"}


@pytest.mark.parametrize("cut", [100, 700, 2000])
def test_a_shard_that_is_cut_short_is_named(tmp_path, cut):
    write_tar(tmp_path / "a.tar", [("k.json", JOY), ("k.wav", bytes(4000))], tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:cut])
    with pytest.raises(UserError, match=r"a\.tar: not a whole tar|no sample in its"):
        shards_index.rebuild(str(tmp_path))


def test_no_shards_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shards.index", str(tmp_path)])
    assert shards_index.main() == 2
    assert "no .tar shards there" in capsys.readouterr().err


def test_the_command_says_what_it_did(tmp_path, monkeypatch, capsys):
    write_tar(tmp_path / "a.tar", [("k.flac", FLAC), ("k.json", JOY), ("bad.json", JOY)])
    monkeypatch.setattr("sys.argv", ["shards.index", str(tmp_path)])
    assert shards_index.main() == 0
    shown = capsys.readouterr()
    assert "index of 1 samples in 1 shards, 1 skipped" in shown.out
    assert "skipped bad: no member" in shown.err
