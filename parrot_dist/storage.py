"""Every file this project touches: `s3://`, `file://` and plain paths, through one maker of filesystems.

The endpoint and the credentials come from the usual AWS chain (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`AWS_SHARED_CREDENTIALS_FILE`, roles) and from nowhere else, so they can never end up in a configuration.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from s3fs.errors import translate_boto_error

from parrot_dist import s3client
from parrot_dist.errors import Unreachable, UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNWRITABLE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM}
NOT_IMPLEMENTED = 501
LASTING = {NOT_IMPLEMENTED, 507}  # the other: it is full. Answers of a store that will be the same the next time
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP}  # of file systems that cannot give a file a second name
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": s3client.SETTINGS,
    "use_listings_cache": False,
    "default_block_size": 16 * 2**20,
}


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem that serves `url`, and the path of `url` in it.

    Build it lazily in the process that uses it: an S3 client does not survive a fork (s3fs#914).
    """
    protocol, _, rest = url.partition("://")
    if not rest:
        if re.match(r"[a-z][a-z0-9+.-]*:", url):  # s3:/bucket would become a folder of that name
            raise UserError(f"{url}: write it with two slashes and a bucket, as in s3://bucket/folder")
        return fsspec.filesystem("file"), str(Path(url).expanduser().absolute())
    if protocol == "file":
        return fsspec.filesystem("file"), rest
    if protocol == "s3":
        return fsspec.filesystem("s3", **S3_OPTIONS), rest.rstrip("/")
    raise UserError(f"{url}: storage is s3://, file:// or a plain path, not {protocol}://")


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it, `/` between them."""
    return posixpath.join(url.rstrip("/") if url != "/" else url, *parts)


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of the object at `url`, or its half-open range [start, end).

    Raises:
        UserError: there is no such object, or the store refuses access.
        Unreachable: the store failed for good.
        OSError: the object is shorter than the range.
    """
    with explained(url):
        try:
            data = _read_s3(url, start, end) if url.startswith("s3://") else _read_file(url, start, end)
        except EOFError as error:
            raise OSError(f"{url}: bytes {start} to {end} are not there ({error}); the object is too short") from error
    return data


def find_bytes(url: str) -> bytes | None:
    """The bytes of the object at `url`; None if there is none.

    Raises:
        UserError: the store refuses access.
        Unreachable: the store failed for good.
    """
    try:
        return read_bytes(url)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _read_s3(url: str, start: int | None, end: int | None) -> bytes:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return s3client.read_object(bucket, key, start or 0, end)


def _read_file(url: str, start: int | None, end: int | None) -> bytes:
    fs, path = filesystem(url)
    data: bytes = fs.cat_file(path, start=start, end=end)
    if start is not None and end is not None and len(data) != end - start:
        raise EOFError(f"{len(data)} of {end - start} bytes came")
    return data


def write_bytes(url: str, data: bytes) -> None:
    """Put `data` at `url` in one step: readers see the old object or the new one, never a part."""
    fs, path = filesystem(url)
    with explained(url):
        if "file" not in fs.protocol:
            fs.pipe_file(path, data)
            return
        _write_aside(Path(path), data).replace(path)


def create_bytes(url: str, data: bytes) -> None:
    """Put `data` at `url` in one step unless something is there; of several writers at once only one succeeds, and on
    stores that cannot do this (see `creates_once`) the last.
    """
    fs, path = filesystem(url)
    with explained(url):
        if "file" in fs.protocol:
            _link_new(_write_aside(Path(path), data), path)
            return
        try:
            fs.pipe_file(path, data, mode="create")
        except Exception as error:
            if _status(error) == NOT_IMPLEMENTED:
                fs.pipe_file(path, data)
            elif _status(error) not in (409, 412):  # another writer is at it, or was
                raise


def _link_new(partial: Path, path: str) -> None:
    """Give `partial` the name `path` unless that is taken, and take its own away."""
    try:
        with suppress(FileExistsError):
            os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        partial.replace(path)
        return
    partial.unlink()


def creates_once(url: str) -> bool:
    """Whether the store of `url` keeps the first of two objects created at one place, found out below `url`.

    Some S3 stores ignore the condition of such a write (If-None-Match) or refuse it.

    Raises:
        UserError: it cannot be written to.
    """
    probe = join(url, f".probe-{uuid.uuid4().hex}")
    for data in (b"first", b"second"):
        create_bytes(probe, data)
    kept = read_bytes(probe) == b"first"
    delete(probe)
    return kept


def _write_aside(target: Path, data: bytes) -> Path:
    """A new file beside `target`, whose folder is made if need be.

    It is on the disk, and so is what was renamed in its folder before: after a power cut nothing is there by name only.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(target.parent, os.O_RDONLY)
    with suppress(OSError):  # not every file system can
        os.fsync(folder)
    os.close(folder)
    return partial


def list_files(url: str) -> dict[str, int]:
    """Name relative to `url` -> size in bytes, of every object below `url`, sorted by name; empty if there is none."""
    return {name: int(info["size"] or 0) for name, info in _list(url).items()}


def list_versions(url: str) -> dict[str, tuple[int, str]]:
    """As `list_files`, each size with a mark that another content of the object changes, even one of the same size."""
    return {
        name: (int(info["size"] or 0), str(info.get("ETag", info.get("changed", ""))))
        for name, info in _list(url).items()
    }


def _list(url: str) -> dict[str, dict[str, Any]]:
    fs, path = filesystem(url)
    with explained(url):
        try:
            found = _walk(path) if "file" in fs.protocol else fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
    # Not what is at `url` itself: an object, or a folder if the first one below came just now. Nor the empty objects
    # with a slash at their end that some programs make for folders.
    below = {name: info for name, info in sorted(found.items()) if name != path and not name.endswith("/")}
    return {posixpath.relpath(name, path): info for name, info in below.items()}


def _walk(folder: str) -> dict[str, dict[str, Any]]:
    """Path -> size, and time of the last change, of every file below a local folder, links to files included.

    fsspec's `find` takes a folder that cannot be read for one that is not there: a run would begin anew.
    """

    def refuse(error: OSError) -> None:
        private = isinstance(error, PermissionError) and error.filename != folder  # as lost+found at a disk's root
        if not private and not isinstance(error, (FileNotFoundError, NotADirectoryError)):  # deleted since; a file
            raise error

    found: dict[str, dict[str, Any]] = {}
    for place, _, names in os.walk(folder, onerror=refuse):
        for path in (posixpath.join(place, name) for name in names):
            try:
                stat = os.stat(path)
                found[path] = {"size": stat.st_size, "changed": stat.st_mtime_ns}
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):  # a link that leads nowhere; or deleted since
                    raise
                found[path] = {"size": 0, "changed": ""}
    return found


def exists(url: str) -> bool:
    """Whether an object, or anything below it, is at `url`."""
    fs, path = filesystem(url)
    with explained(url):
        return bool(fs.exists(path))


def delete(url: str) -> None:
    """Remove the object or the whole tree at `url`; silent if there is none."""
    fs, path = filesystem(url)
    with explained(url):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def check_writable(url: str) -> None:
    """Write, read back and delete a small object below `url`, so that a run fails before it starts and not after.

    Raises:
        UserError: one of the three did not work; says which store and why.
    """
    probe = join(url, f".probe-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"parrot")
        same = read_bytes(probe) == b"parrot"
        delete(probe)
    except UserError as error:
        raise type(error)(str(error).replace(probe, url)) from error
    if not same:
        raise UserError(f"{url}: an object written there does not read back as it was written")


def node_folder() -> Path:
    """Where this user's processes keep on a node what they share; the folder may not be there yet."""
    return Path(tempfile.gettempdir()) / f"parrot-dist-{os.getuid()}"


def local_copy(url: str) -> Path:
    """A local path with the content of the file or folder at `url`; a local `url` is returned as it is.

    Remote content is kept in the temporary directory under a name made from the objects' names, sizes and
    entity tags, so the ranks of a node download it once and a changed object is never mistaken for the old one.

    Raises:
        UserError: there is nothing at `url`, or no room for the copy.
    """
    fs, path = filesystem(url)
    if "file" in fs.protocol:
        return Path(path)
    with explained(url):
        found = fs.find(path, detail=True)
        if not found:
            raise UserError(f"{url}: there is nothing at this place")
        state = "\n".join(f"{name} {info['size']} {info.get('ETag')}" for name, info in sorted(found.items()))
        root = node_folder()
        target = root / hashlib.sha256(state.encode()).hexdigest()[:24]
        with _room(root):
            root.mkdir(mode=0o700, exist_ok=True)
            with target.with_suffix(".lock").open("w") as lock:
                # One rank of the node downloads, the others wait; the lock ends with the process that held it.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.exists():
                    _download(fs, {name: posixpath.relpath(name, posixpath.dirname(path)) for name in found}, target)
    return target / posixpath.basename(path)


@contextmanager
def temporary_copy(url: str) -> Iterator[Path]:
    """A local path with the content of the file at `url` as long as the block lasts; a local `url` as it is.

    Raises:
        UserError: there is no such file.
    """
    fs, path = filesystem(url)
    if "file" in fs.protocol:
        with explained(url):
            Path(path).stat()
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / posixpath.basename(path)
        with explained(url), _room(Path(folder).parent):
            fs.get_file(path, str(copy))
        yield copy


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Turn what keeps a local copy from being written into `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE or _status(error):  # a store may refuse with the same number
            raise
        raise UserError(f"{folder}: {error.strerror}; TMPDIR names another place for copies from the store") from error


def _download(fs: Any, names: dict[str, str], target: Path) -> None:
    """Get the objects, each to its place below `target`, which appears only when it is whole."""
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        for name, place in names.items():
            (partial / place).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(name, str(partial / place))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the storage errors a person can mend (place, credentials, address) into `UserError`."""
    try:
        yield
    except (NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{url}: a file is where a folder should be ({_reason(error)})") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE and not _status(error):  # not of a store
            todo = "make room there" if error.errno in FULL else "let this user read and write there"
            raise UserError(f"{url}: {error.strerror}; {todo}, or name another place") from error
        refused = translate_boto_error(error) if isinstance(error, ClientError) else error
        if isinstance(refused, FileNotFoundError):
            status = f" (HTTP {_status(error)})" if _status(error) else ""
            raise UserError(f"{url}: there is no such file, bucket or object{status}; check the name") from refused
        if isinstance(refused, PermissionError):
            keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
            raise UserError(f"{url}: access refused ({_reason(refused)}); check {keys}") from refused
        if isinstance(error, (NoCredentialsError, PartialCredentialsError, ProfileNotFound)):
            raise UserError(f"{url}: no usable AWS credentials ({_reason(error)})") from error
        if isinstance(error, (NoConnectionError, HTTPClientError, s3client.BrokenAnswer)):
            reason = f"the object store does not answer ({_reason(error)})"
            raise Unreachable(f"{url}: {reason}; check AWS_ENDPOINT_URL") from error
        if _status(error) >= 500 and _status(error) not in LASTING:
            raise Unreachable(f"{url}: the object store is out of order ({_reason(refused)})") from error
        if _status(error):
            raise UserError(f"{url}: the object store refused ({_reason(refused)})") from error
        raise


def _status(error: BaseException) -> int:
    """The HTTP status behind `error`, which s3fs hides in the cause of its own; 0 if there is none."""
    answer: dict[str, Any] = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(error: BaseException) -> str:
    status = f"HTTP {_status(error)}: " if _status(error) else ""
    return status + (str(error).splitlines()[0] if str(error) else type(error).__name__)
