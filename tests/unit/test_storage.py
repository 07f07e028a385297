"""One storage: what a person can mend is said, whole objects or none are written."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem

from parrot_dist import configuration, s3client, storage
from parrot_dist.errors import Unreachable, UserError
from parrot_dist.training import lease, prepare
from tests.jobs import Material, settings


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


def fail_to_list(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Let the system answer with error `number` where it is asked for what lies in `folder`."""
    scandir = os.scandir

    def fail(place: str) -> object:
        if Path(place) == folder:
            raise OSError(number, os.strerror(number), str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", fail)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b"), b"12")
    fail_to_list(monkeypatch, tmp_path / "a", errno.ESTALE)
    with pytest.raises(OSError, match="Stale file handle"):
        storage.list_files(str(tmp_path))


def test_what_lies_in_a_folder_of_somebody_else_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"12")
    storage.write_bytes(str(tmp_path / "lost+found" / "b"), b"12")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    fail_to_list(monkeypatch, tmp_path / "lost+found", errno.EACCES)
    assert storage.list_files(str(tmp_path)) == {"a": 2, "loop": 0}
    with pytest.raises(UserError, match="Permission denied"):
        storage.list_files(str(tmp_path / "lost+found"))


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


def test_a_listing_holds_objects_below_its_place_only(bucket_url: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket_url}/object", b"12")
    storage.write_bytes(f"{bucket_url}/run/part", b"1")
    bucket, _, key = bucket_url.removeprefix("s3://").partition("/")
    for folder in ("run", "run/empty", "made"):  # as a console makes folders
        s3client.client().put_object(Bucket=bucket, Key=f"{key}/{folder}/")
    for place, there in {"object": {}, "run": {"part": 1}, "run/": {"part": 1}, "made": {}, "none": {}}.items():
        assert storage.list_files(f"{bucket_url}/{place}") == there
    storage.write_bytes(str(tmp_path / "object"), b"12")
    assert storage.list_files(str(tmp_path / "object")) == {}


def test_a_folder_that_appears_while_it_is_listed_is_no_object_of_its_own(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket_url}/run/part", b"1")
    listing, calls = S3FileSystem._lsdir, []

    async def at_first_nothing(self: S3FileSystem, path: str, **words: object) -> list[object]:
        calls.append(path)
        return await listing(self, path, **words) if len(calls) > 1 else []

    monkeypatch.setattr(S3FileSystem, "_lsdir", at_first_nothing)
    assert storage.list_files(f"{bucket_url}/run") == {}


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there"),
        (errno.EROFS, "let this user read and write there"),
        (errno.EACCES, "let this user read and write there"),
    ],
)
def test_a_folder_that_takes_nothing_is_named_with_what_to_do(
    number: int, todo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError) as refusal:
        storage.check_writable(str(tmp_path))
    assert str(refusal.value) == f"{tmp_path}: {os.strerror(number)}; {todo}, or name another place"


@pytest.mark.parametrize(("status", "lasts"), [(501, True), (507, True), (503, False)])
def test_a_store_that_will_never_take_it_is_not_tried_again(status: int, lasts: bool) -> None:
    answer = {"Error": {"Code": "StorageFull"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(UserError, match=f"HTTP {status}") as refusal, storage.explained("s3://bucket/object"):
        raise ClientError(answer, "PutObject")
    assert isinstance(refusal.value, Unreachable) != lasts


@pytest.fixture(params=["ignores the condition", "refuses it", "has no links"])
def simple_store(
    request: pytest.FixtureRequest, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A place in a store that cannot create an object only where there is none."""
    call = S3FileSystem._call_s3

    async def call_s3(self: S3FileSystem, method: str, *positional: object, **words: object) -> object:
        if words.pop("IfNoneMatch", None) and request.param == "refuses it":
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise OSError(errno.EIO, "a header is not implemented") from ClientError(answer, "PutObject")
        return await call(self, method, *positional, **words)

    def link(source: Path, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(S3FileSystem, "_call_s3", call_s3)
    monkeypatch.setattr(os, "link", link)
    return str(tmp_path) if request.param == "has no links" else bucket_url


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_store_that_keeps_writers_apart_is_known(kind: str, bucket_url: str, tmp_path: Path) -> None:
    place = bucket_url if kind == "s3" else str(tmp_path)
    assert storage.creates_once(place)
    assert storage.list_files(place) == {}


def test_a_run_can_have_a_store_that_does_not_keep_its_drivers_apart(
    simple_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not storage.creates_once(simple_store)
    assert storage.list_files(simple_store) == {}
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    for _ in range(2):
        with (
            lease.hold(simple_store, pytest.fail),
            pytest.raises(UserError, match="is being trained by"),  # one that comes later is refused all the same
            lease.hold(simple_store, lambda text: None),
        ):
            pass
    assert storage.list_files(simple_store) == {}


class Shown:
    """A view that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def show(self, kind: str, **data: str) -> None:
        self.warnings += [data["text"]] if kind == "warning" else []


@pytest.mark.parametrize("apart", [True, False])
def test_it_is_said_before_a_run_whether_drivers_are_kept_apart(
    apart: bool, local_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "creates_once", lambda url: apart)
    view = Shown()
    assert prepare.prepare(configuration.load(None, settings(local_material, str(tmp_path))), view)
    said = [text for text in view.warnings if text.startswith(f"{tmp_path}: ") and "two drivers" in text]
    assert len(said) == (not apart)


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
