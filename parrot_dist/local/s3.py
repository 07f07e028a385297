"""An S3 server on loopback that checks signatures and keeps its objects, for the demo and the tests.

`python -m parrot_dist.local.s3 FOLDER [--bucket NAME]` runs it in the foreground; `. FOLDER/env` in another shell
makes it the store of every command there. moto serves; two things are added here: its user management is switched on,
so that wrong credentials are refused as in production, and every object is written to FOLDER/objects.sqlite before
its writer gets the answer, so that the next start, even after a SIGKILL, has it. User metadata and buckets without
objects are not kept.
"""

from __future__ import annotations

import argparse
import configparser
import json
import logging
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

from parrot_dist.errors import UserError, exits_cleanly
from parrot_dist.local.process import child, wait_until

LOOPBACK = "127.0.0.1"
REGION = "us-east-1"
ACCOUNT = "123456789012"
ALLOW_ALL = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}


@dataclass(frozen=True)
class S3Server:
    """A running server: its address, its bucket, and the environment that makes a process use it."""

    endpoint: str
    bucket: str
    env: dict[str, str]


@contextmanager
def s3_server(folder: Path, bucket: str = "parrot") -> Iterator[S3Server]:
    """Run the server on the objects in `folder` in a process of its own, which ends with the block or its owner.

    Raises:
        UserError: it did not start, for example because another server uses `folder`.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    address, log = folder / "endpoint", folder / "s3.log"
    address.unlink(missing_ok=True)
    command = [sys.executable, "-m", "parrot_dist.local.s3", str(folder), "--bucket", bucket]
    with child(command, os.environ, log) as process:
        wait_until(address.exists, process, log, timeout_s=120)
        endpoint = address.read_text()
        yield S3Server(endpoint, bucket, client_env(folder, endpoint))


def client_env(folder: Path, endpoint: str) -> dict[str, str]:
    """The variables that lead every AWS client to this server and past the user's own profile and configuration."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_PROFILE": "default",
        # An empty value counts as none: keys in the environment would win over the credentials file.
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_SESSION_TOKEN": "",
    }


def serve(folder: Path, bucket: str, host: str = LOOPBACK) -> None:
    """Serve the objects kept in `folder` on a free port of the address `host` until the process is ended.

    Writes `folder`/credentials (AWS format, readable by the owner only), `folder`/env (to be sourced) and, last, once
    requests are answered, `folder`/endpoint.
    """
    # Heavy, and needed by the serving process only.
    from moto import settings
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # otherwise a line for every request
    backend = s3_backends[ACCOUNT]["aws"]
    objects = KeptObjects(folder / "objects.sqlite", backend)
    objects.load(bucket)
    admit_user(folder / "credentials")
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    app = objects.writing_through(create_backend_app("s3"))
    server = make_server(host, 0, app, threaded=True, request_handler=MotoRequestHandler)
    endpoint = f"http://{host}:{server.server_port}"
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in client_env(folder, endpoint).items())
    (folder / "env").write_text(exports)
    partial = folder / ".endpoint"
    partial.write_text(endpoint)
    partial.replace(folder / "endpoint")
    print(f"s3://{bucket} at {endpoint}; use it with: . {folder / 'env'}", flush=True)
    server.serve_forever()


def admit_user(credentials: Path) -> None:
    """Let in the one user named in the file `credentials`, which is made, with random keys, if there is none."""
    from moto.iam.models import iam_backends

    iam = iam_backends[ACCOUNT]["aws"]
    iam.create_user(REGION, "parrot")
    iam.put_user_policy("parrot", "all", json.dumps(ALLOW_ALL))
    key = iam.create_access_key("parrot")
    content = configparser.ConfigParser()
    if content.read(credentials):
        key.access_key_id = content["default"]["aws_access_key_id"]
        key.secret_access_key = content["default"]["aws_secret_access_key"]
        return
    content["default"] = {"aws_access_key_id": key.access_key_id, "aws_secret_access_key": key.secret_access_key}
    with open(os.open(credentials, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        content.write(file)


class KeptObjects:
    """The objects of a moto backend, written through to one SQLite file (a file store of any key name)."""

    def __init__(self, path: Path, backend: Any) -> None:
        self.backend = backend
        self.kept: dict[tuple[str, str], Any] = {}
        self.lock = Lock()
        self.database = sqlite3.connect(path, check_same_thread=False)
        try:
            # One server at a time: two would overwrite each other's objects.
            self.database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=NORMAL")
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS object"
                "(bucket TEXT, name TEXT, etag TEXT, modified TEXT, value BLOB, PRIMARY KEY (bucket, name))"
            )
        except sqlite3.OperationalError as error:
            raise UserError(f"{path}: {error}; is another S3 server running on this folder?") from error

    def load(self, bucket: str) -> None:
        """Put all kept objects into the backend, oldest first, with their times and entity tags; make `bucket`."""
        self.backend.create_bucket(bucket, REGION)
        for place, name, etag, modified, value in self.database.execute("SELECT * FROM object ORDER BY modified"):
            if place not in self.backend.buckets:
                self.backend.create_bucket(place, REGION)
            key = self.backend.put_object(place, name, value, etag=etag, disable_notification=True)
            key.last_modified = datetime.fromisoformat(modified)
            self.kept[place, name] = key

    def save(self) -> None:
        """Bring the file up to date with the backend: what is new, what was replaced, what is gone."""
        with self.lock, self.database:
            present = {(b.name, name): key for b in list(self.backend.buckets.values()) for name, key in b.keys.items()}
            self.database.executemany("DELETE FROM object WHERE bucket=? AND name=?", self.kept.keys() - present.keys())
            for place, key in present.items():
                if self.kept.get(place) is not key:
                    with suppress(ValueError):  # replaced this instant: the request that did it keeps the new one
                        row = (*place, key.etag.strip('"'), key.last_modified.isoformat(), key.value)
                        self.database.execute("INSERT OR REPLACE INTO object VALUES (?,?,?,?,?)", row)
            self.kept = present

    def writing_through(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """The WSGI application `app` that answers a request only when what it changed is on disk."""

        def respond(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            answer = app(environ, start_response)
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
                self.save()
            return answer

        return respond


@exits_cleanly
def main() -> int:
    """Entry point: serve a folder in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m parrot_dist.local.s3", description="an S3 server on loopback")
    parser.add_argument("folder", type=Path, help="where its objects, credentials and environment are kept")
    parser.add_argument("--bucket", default="parrot", help="made if it is not there; default: %(default)s")
    parser.add_argument("--host", default=LOOPBACK, help="own address to listen on; default: %(default)s")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(KeyboardInterrupt):
        serve(folder, arguments.bucket, arguments.host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
