"""The S3 server of the demo and the tests: who is let in, and what outlives it."""

from __future__ import annotations

import configparser
import os
import stat
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from parrot_dist import storage
from parrot_dist.errors import UserError
from parrot_dist.local.s3 import S3Server, client_env, s3_server
from tests.waiting import wait_until

Use = Callable[[Mapping[str, str]], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Lead this process's S3 clients elsewhere; s3fs keeps its clients, so they have to be dropped."""

    def use_environment(env: Mapping[str, str]) -> None:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()

    yield use_environment
    S3FileSystem.clear_instance_cache()


def answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=60)
    except urllib.error.HTTPError:
        return True  # refused, but by somebody
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "wrong", [{"aws_secret_access_key": "wrong"}, {"aws_access_key_id": "AKIAIOSFODNN7EXAMPLE"}], ids=["secret", "key"]
)
def test_wrong_credentials_are_refused(
    s3: S3Server, bucket_url: str, tmp_path: Path, use: Use, wrong: dict[str, str]
) -> None:
    storage.write_bytes(f"{bucket_url}/a", b"a")
    content = configparser.ConfigParser()
    content.read(s3.env["AWS_SHARED_CREDENTIALS_FILE"])
    content["default"].update(wrong)
    with (tmp_path / "credentials").open("w") as file:
        content.write(file)
    use({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")})
    for attempt in (storage.read_bytes, storage.list_files, lambda url: storage.write_bytes(url, b"b")):
        with pytest.raises(UserError, match="access refused"):
            attempt(f"{bucket_url}/a")


def test_unsigned_requests_are_refused(s3: S3Server, bucket_url: str) -> None:
    storage.write_bytes(f"{bucket_url}/a", b"a")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{s3.endpoint}/{bucket_url.removeprefix('s3://')}/a")


def test_the_users_own_settings_do_not_interfere(s3: S3Server, bucket_url: str, use: Use) -> None:
    theirs = {"AWS_PROFILE": "work", "AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "theirs"}
    use(theirs | s3.env)
    storage.write_bytes(f"{bucket_url}/a", b"a")
    assert storage.read_bytes(f"{bucket_url}/a") == b"a"


def test_credentials_are_for_their_owner_only(s3: S3Server) -> None:
    mode = Path(s3.env["AWS_SHARED_CREDENTIALS_FILE"]).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_ranged_reads_are_exact(bucket_url: str) -> None:
    data = bytes(range(256)) * 40
    storage.write_bytes(f"{bucket_url}/object", data)
    for start, end in ((0, 1), (255, 257), (5000, len(data)), (len(data) - 1, len(data))):
        assert storage.read_bytes(f"{bucket_url}/object", start, end) == data[start:end]
    with pytest.raises(OSError, match="too short"):
        storage.read_bytes(f"{bucket_url}/object", 5000, len(data) + 1)


def test_objects_outlive_a_restart(tmp_path: Path, use: Use) -> None:
    names = {"a": b"first", "a/b": b"below another name", "gone": b"", "ümlaut and space": bytes(2**20)}
    with s3_server(tmp_path) as server:
        use(server.env)
        for name, data in names.items():
            storage.write_bytes(f"s3://parrot/{name}", data)
        storage.write_bytes("s3://parrot/a", b"second")
        storage.delete("s3://parrot/gone")
        before = storage.filesystem("s3://parrot")[0].find("parrot", detail=True)
    with s3_server(tmp_path) as server:
        use(server.env)
        assert storage.list_files("s3://parrot") == {"a": 6, "a/b": 18, "ümlaut and space": 2**20}
        assert storage.read_bytes("s3://parrot/a") == b"second"
        after = storage.filesystem("s3://parrot")[0].find("parrot", detail=True)
    for name, info in after.items():
        assert (info["ETag"], info["LastModified"]) == (before[name]["ETag"], before[name]["LastModified"])


def test_a_large_object_written_in_parts_outlives_a_restart(tmp_path: Path, use: Use) -> None:
    part = os.urandom(2**20) * 6
    with s3_server(tmp_path) as server:
        use(server.env)
        with storage.filesystem("s3://parrot")[0].open("parrot/parts", "wb", block_size=len(part)) as file:
            file.write(part)
            file.write(part)
    with s3_server(tmp_path) as server:
        use(server.env)
        assert storage.read_bytes("s3://parrot/parts") == part * 2


def test_an_answered_write_outlives_sigkill(tmp_path: Path, use: Use) -> None:
    command = [sys.executable, "-m", "parrot_dist.local.s3", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until((tmp_path / "endpoint").exists)
            use(client_env(tmp_path, (tmp_path / "endpoint").read_text()))
            for number in range(20):
                storage.write_bytes(f"s3://parrot/{number}", b"parrot")
        finally:
            process.kill()
    with s3_server(tmp_path) as server:
        use(server.env)
        assert storage.list_files("s3://parrot") == {str(number): 6 for number in sorted(range(20), key=str)}


def test_two_servers_know_nothing_of_each_other(s3: S3Server, bucket_url: str, tmp_path: Path, use: Use) -> None:
    storage.write_bytes(f"{bucket_url}/a", b"a")
    with s3_server(tmp_path) as other:
        use(other.env)
        assert storage.list_files(f"s3://{other.bucket}") == {}
        use({**other.env, "AWS_SHARED_CREDENTIALS_FILE": s3.env["AWS_SHARED_CREDENTIALS_FILE"]})
        with pytest.raises(UserError, match="access refused"):
            storage.list_files(f"s3://{other.bucket}")


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with s3_server(tmp_path):
        command = [sys.executable, "-m", "parrot_dist.local.s3", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 2
    assert "another S3 server" in second.stderr


def test_the_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    script = f"""
        import pathlib, time
        from parrot_dist.local.s3 import s3_server
        with s3_server(pathlib.Path({str(tmp_path)!r})) as server:
            print(server.endpoint, flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        endpoint = owner.stdout.readline().strip()
        assert answers(endpoint)
        owner.kill()
    wait_until(lambda: not answers(endpoint))
