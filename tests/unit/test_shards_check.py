"""The check names every fault that a corpus may have, and none where there is none."""

from __future__ import annotations

import io
import json
import resource
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from parrot_dist.data import audio, index
from shards import check, tar
from shards import index as shards_index
from tests.corpus import write_corpus

FLAC = audio.encode_flac(np.full(1600, 0.25, np.float32))
JOY = json.dumps({"label": "joy", "speaker": "anna", "samples": 1600}).encode()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three shards of four samples."""
    write_corpus(str(tmp_path), speakers=6, clips=2, seconds=0.1)
    return tmp_path


def faults(folder: Path) -> list[str]:
    return [str(fault) for fault in check.check(str(folder))]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_a_whole_corpus_has_no_fault(corpus: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["shards.check", str(corpus)])
    assert check.main() == 0
    assert capsys.readouterr().out == f"{corpus}: no fault\n"


def test_nothing_to_check_is_an_error(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["shards.check", str(tmp_path)])
    assert check.main() == 2
    assert "no .tar shards there" in capsys.readouterr().err


def test_every_fault_is_named_and_the_exit_code_is_1(corpus: Path, monkeypatch, capsys) -> None:
    first, second, third = sorted(corpus.glob("*.tar"))
    data = bytearray(first.read_bytes())
    rows = index.read_index(str(corpus))
    flac = data.index(b"fLaC")
    data[flac : flac + 4] = b"evil"
    first.write_bytes(data)
    second.unlink()
    third.write_bytes(third.read_bytes()[: rows.offset[-1]])
    write_tar(corpus / "more.tar", [("s00-0000.flac", FLAC), ("s00-0000.json", JOY), ("silent.json", JOY)])
    monkeypatch.setattr("sys.argv", ["shards.check", str(corpus)])
    assert check.main() == 1
    lines = capsys.readouterr().out.splitlines()
    size = rows.shard_sizes[third.name]
    assert lines == [
        "more.tar: is not in the index",
        "shard-000001.tar: is in the index, but there is no such file",
        f"shard-000002.tar: has {rows.offset[-1]} bytes, the index says {size}",
        "more.tar s00-0000: is in the shard and not in the index",
        "more.tar silent: no member flac or wav",
        "shard-000000.tar s00-0000: not a readable audio file (Format not recognised)",
        "shard-000000.tar s00-0000: its key is also in more.tar",
        f"shard-000002.tar: not a whole tar: neither a header nor the end of a tar at byte {rows.offset[-1]}",
        "shard-000002.tar s05-0001: is in the index and not in the shard",
        f"{corpus}: 9 faults",
    ]


def test_what_shard_and_index_say_differently_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k.flac", FLAC), ("k.json", JOY)])
    made, _ = shards_index.rebuild(str(tmp_path))
    row = index.Row("k", "a.tar", 0, int(made.size[0]), 1600, "joy", "anna", "", "und")
    index.write_index(str(tmp_path), [row._replace(label="anger", samples=1599, fold="dev")], made.shard_sizes)
    assert faults(tmp_path) == [
        "a.tar k: samples is 1600 in the shard and 1599 in the index",
        "a.tar k: label is joy in the shard and anger in the index",
        "a.tar k: fold is empty in the shard and dev in the index",
    ]


def test_a_wrong_length_and_missing_labels_are_named(tmp_path: Path) -> None:
    facts = [{"label": "joy", "speaker": "anna", "samples": 1599}, {"label": "", "speaker": "anna"}, {"label": "joy"}]
    members = [(f"k{number}.json", json.dumps(fact).encode()) for number, fact in enumerate(facts)]
    members += [("k3.json", b"[" * 100_000), ("k4.json", b'{"label": "\\ud800", "speaker": "anna"}')]
    write_tar(
        tmp_path / "a.tar", [entry for name, text in members for entry in [(f"{name[:2]}.flac", FLAC), (name, text)]]
    )
    made, skipped = shards_index.rebuild(str(tmp_path))
    assert (list(made.key), sorted(skipped)) == (["k0"], ["k1", "k2", "k3", "k4"])
    named = faults(tmp_path)
    assert "a.tar k0: its JSON member says 1599 samples, its audio has 1600" in named
    assert [
        any(f"a.tar k{number}: no JSON member with label and speaker" in line for line in named)
        for number in range(1, 5)
    ]


def test_a_sample_with_two_faults_has_both_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k.flac", b"noise"), ("k.json", b"no JSON")])
    _, labels, sound = faults(tmp_path)
    assert "no JSON member with label and speaker" in labels
    assert "not a readable audio file" in sound


def test_a_damaged_index_is_a_fault_and_the_shards_are_checked_all_the_same(corpus: Path) -> None:
    (corpus / "index.parquet").write_bytes(b"PAR1")
    write_tar(corpus / "a.tar", [("k.json", JOY)])
    unusable, silent = faults(corpus)
    assert "python -m shards.index" in unusable
    assert silent == "a.tar k: no member flac or wav"


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../evil", "../b/k"])
def test_names_that_lead_out_of_the_folder_harm_nothing_and_are_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    write_tar(folder / "a.tar", [("k.flac", FLAC), ("k.json", JOY), (f"{name}.flac", FLAC), (f"{name}.json", JOY)])
    made, skipped = shards_index.rebuild(str(folder))
    assert (list(made.key), list(skipped.values())) == (["k"], ["its name leads out of the folder"])
    assert [line.partition(": ")[2] for line in faults(folder)] == ["its name leads out of the folder"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.tar", "index.parquet"]


def test_a_name_that_is_no_text_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as file:
        for suffix, data in (("flac", FLAC), ("json", JOY)):
            info = tarfile.TarInfo(f"Ärger.{suffix}")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    monkeypatch.setattr("sys.argv", ["shards.check", str(tmp_path)])
    assert check.main() == 1
    assert "a.tar \\udcc4rger: " in capsys.readouterr().out


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    evil = b"cposix\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    write_tar(tmp_path / "a.tar", [("k.flac", FLAC), ("k.json", JOY), ("k.pickle", evil), ("k.pyd", evil)])
    shards_index.rebuild(str(tmp_path))
    assert faults(tmp_path) == []
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_header_that_claims_4_gb_is_refused(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("k.flac")
    header.size, header.type = 2**32, kind
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    named = faults(tmp_path)
    assert len(named) == 2  # no index, and this
    assert "a.tar: not a whole tar" in named[1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


@pytest.mark.parametrize(
    ("claim", "told"), [(None, "over an hour"), (0, "does not say how long"), (2**36 - 1, "over an hour")]
)
def test_a_flac_that_decodes_to_hours_is_refused(tmp_path: Path, claim: int | None, told: str) -> None:
    bomb = hour_of_silence(claim)
    assert len(bomb) < 300_000
    write_tar(tmp_path / "a.tar", [("k.flac", bomb), ("k.json", JOY)])
    assert any("a.tar k: " in line and told in line for line in faults(tmp_path))


def test_a_flac_that_claims_less_than_it_decodes_to_is_read_no_further(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k.flac", hour_of_silence(1600)), ("k.json", JOY)])
    shards_index.rebuild(str(tmp_path))
    assert faults(tmp_path) == []


def hour_of_silence(claim: int | None) -> bytes:
    """61 minutes of FLAC; `claim` is what its header says instead of its number of samples (0: unknown)."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", audio.SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16") as flac:
        for _ in range(61):
            flac.write(np.zeros(60 * audio.SAMPLE_RATE, np.int16))
    data = bytearray(file.getvalue())
    if claim is not None:  # 36 bits from the middle of byte 21
        data[21] = data[21] & 0xF0 | claim >> 32
        data[22:26] = (claim & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def test_damage_between_two_samples_is_found(corpus: Path) -> None:
    place = corpus / "shard-000001.tar"
    second = int(index.read_index(str(corpus)).offset[5])
    data = bytearray(place.read_bytes())
    data[second : second + 512] = b"x" * 512
    place.write_bytes(data)
    named = faults(corpus)
    assert f"shard-000001.tar: not a whole tar: neither a header nor the end of a tar at byte {second}" in named
    assert sum("is in the index and not in the shard" in line for line in named) == 3


@pytest.mark.parametrize("cut", [512, 1024, 1100])
def test_a_tar_that_lost_its_end_is_not_whole(cut: int) -> None:
    data = tar.pack("k", {"flac": FLAC, "json": JOY}) + tar.END
    assert [key for key, _, _ in tar.ranges(io.BytesIO(data))] == ["k"]
    with pytest.raises(tarfile.TarError):
        list(tar.ranges(io.BytesIO(data[:-cut])))
