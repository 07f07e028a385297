"""One storage: what a person can mend is said, whole objects or none are written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from parrot_dist import storage
from parrot_dist.errors import UserError


@pytest.mark.parametrize("url", ["s3:/bucket/folder", "s3:", "s3://", "http://host/folder"])
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="s3://"):
        storage.filesystem(url)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file is where a folder should be"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")


def test_a_range_beyond_the_end_is_an_error_and_not_less(tmp_path: Path) -> None:
    url = str(tmp_path / "object")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_bytes(url, 2, 5) == b"234"
    with pytest.raises(OSError, match="too short"):
        storage.read_bytes(url, 8, 12)


def test_only_what_is_not_there_is_found_to_be_nothing(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "object"), b"12")
    assert storage.find_bytes(str(tmp_path / "object")) == b"12"
    assert storage.find_bytes(str(tmp_path / "none")) is None
    with pytest.raises(UserError, match="a file is where a folder should be"):
        storage.find_bytes(str(tmp_path / "object" / "below"))


def test_listing_names_sizes_below_a_place(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b"), b"12")
    storage.write_bytes(f"file://{tmp_path}/c", b"1")
    assert storage.list_files(str(tmp_path)) == {"a/b": 2, "c": 1}
    assert storage.list_files(str(tmp_path / "none")) == {}
    storage.delete(str(tmp_path / "a"))
    storage.delete(str(tmp_path / "a"))
    assert not storage.exists(str(tmp_path / "a"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_is_on_the_disk_and_all_that_came_before_it_in_its_folder_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def note_sync(file: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{file}')).name}")
        sync(file)

    def note_rename(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    storage.write_bytes(str(tmp_path / "folder" / "manifest"), b"1")
    file = done[-1].removeprefix("rename ")
    assert done == [f"sync {file}", "sync folder", f"rename {file}"]
    assert (tmp_path / "folder" / "manifest").read_bytes() == b"1"
