"""One storage: what a person can mend is said, whole objects or none are written."""

from __future__ import annotations

import os
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


def test_a_version_changes_with_the_content_also_behind_a_link(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "kept" / "a"), b"12")
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "a").symlink_to(tmp_path / "kept" / "a")
    (tmp_path / "seen" / "gone").symlink_to(tmp_path / "nowhere")
    before = storage.list_versions(str(tmp_path / "seen"))
    assert storage.list_versions(str(tmp_path / "seen")) == before
    assert [size for size, _ in before.values()] == [2, 0]
    os.utime(tmp_path / "kept" / "a", ns=(0, int(before["a"][1]) + 1))
    after = storage.list_versions(str(tmp_path / "seen"))
    assert before["a"] != after["a"]
    assert before["gone"] == after["gone"]
