"""Local copies of remote files: one download for all the ranks of a node, and nothing left of one that failed."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from parrot_dist import storage


class Remote(MemoryFileSystem):
    """A store in memory that counts what is downloaded, and breaks once `broken` says so."""

    cachable = False
    broken = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs, self.downloads = {}, [""], []

    def get_file(self, rpath, lpath, **options):
        self.downloads.append(rpath)
        time.sleep(0.1)  # the other ranks come while this one is still at it
        if self.broken and len(self.downloads) == 2:
            raise OSError("the connection broke")
        super().get_file(rpath, lpath, **options)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    fs = Remote()
    fs.pipe({"/store/model/config.json": b"{}", "/store/model/weights/a.bin": b"abc"})
    monkeypatch.setattr(storage, "filesystem", lambda url: (fs, "/store/model"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return fs


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ranks_that_start_together_download_once(remote):
    with ThreadPoolExecutor(4) as ranks:
        places = set(ranks.map(storage.local_copy, ["s3://store/model"] * 4))
    assert len(places) == 1
    assert contents(places.pop()) == {"config.json": b"{}", "weights/a.bin": b"abc"}
    assert len(remote.downloads) == 2


def test_a_download_that_fails_leaves_nothing_and_can_be_repeated(remote, tmp_path):
    remote.broken = True
    with pytest.raises(OSError, match="the connection broke"):
        storage.local_copy("s3://store/model")
    assert [path.suffix for path in tmp_path.glob("*/*")] == [".lock"]
    remote.broken = False
    assert len(contents(storage.local_copy("s3://store/model"))) == 2


def test_a_changed_object_is_copied_anew(remote):
    before = storage.local_copy("s3://store/model")
    remote.pipe("/store/model/weights/a.bin", b"abcd")
    after = storage.local_copy("s3://store/model")
    assert contents(before)["weights/a.bin"] == b"abc"
    assert contents(after)["weights/a.bin"] == b"abcd"


UNPRIVILEGED = ["unshare", "--map-root-user", "--mount"]  # a mount of one's own, without being root


def can_mount():
    return shutil.which("unshare") is not None and subprocess.run([*UNPRIVILEGED, "true"]).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace of its own")
@pytest.mark.parametrize(
    ("copy", "folder"), [("local_copy(url)", "/parrot-dist-0"), ("temporary_copy(url).__enter__()", "")]
)
def test_a_full_disk_is_a_users_mistake(copy, folder, bucket_url, tmp_path):
    storage.write_bytes(f"{bucket_url}/model/weights.bin", bytes(2**20))
    script = f"""
        from parrot_dist import storage
        from parrot_dist.errors import UserError
        url = "{bucket_url}/model/weights.bin"
        try:
            storage.{copy}
        except UserError as error:
            print(error)
    """
    mounted = 'mount -t tmpfs -o size=64k tmpfs "$TMPDIR" && exec "$0" -c "$1"'
    command = [*UNPRIVILEGED, "sh", "-c", mounted, sys.executable, dedent(script)]
    ended = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    expected = f"{tmp_path}{folder}: No space left on device; TMPDIR names another place for copies from the store\n"
    assert ended.stdout == expected, ended.stderr
