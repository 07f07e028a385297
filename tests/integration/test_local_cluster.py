"""The local Ray head: what a job sees, what its owner gets back, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest

from parrot_dist.errors import UserError
from parrot_dist.local.cluster import LOOPBACK, RayHead, client_environment, pick_port, ray_head, start_command
from parrot_dist.local.s3 import S3Server
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).parents[2]
RUNTIME_ENV = REPOSITORY / "jobs" / "runtime_env.yaml"
SUBMITTER = """
    import json, sys
    from pathlib import Path
    from parrot_dist.local.cluster import RayHead
    from parrot_dist.local.process import exit_on_sigterm
    head, script, *places = json.loads(sys.argv[1])
    exit_on_sigterm()
    RayHead(**head).submit(["python", "-c", script], *map(Path, places))
"""


def python(script: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(script)]


def processes_of(token: Path) -> list[str]:
    """The command lines of the processes started with the authentication token at this path."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(token).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has just ended, or is somebody else's
    return found


def get(head: RayHead, path: str) -> str:
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(head.dashboard + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_a_job_gets_the_code_and_the_credentials_and_no_secret_is_recorded(
    ray_cluster: RayHead, s3: S3Server, bucket_url: str, tmp_path: Path
) -> None:
    script = """
        import json, os, pathlib, sys
        from parrot_dist import storage
        storage.write_bytes(sys.argv[1], b"from the job")
        files = {str(path): path.stat().st_size for path in pathlib.Path().rglob("*") if path.is_file()}
        pathlib.Path(sys.argv[2]).write_text(json.dumps([files, os.environ["RAY_JOB_STOP_WAIT_TIME_S"]]))
    """
    command = ["python", "-c", textwrap.dedent(script), f"{bucket_url}/object", str(tmp_path / "seen")]
    assert ray_cluster.submit(command, REPOSITORY, RUNTIME_ENV) == 0
    files, stop_wait = json.loads((tmp_path / "seen").read_text())
    assert {Path(name).parts[0] for name in files} == {"parrot_dist", "shards", "jobs"}
    assert sum(files.values()) < 2_000_000
    assert int(stop_wait) >= 60
    jobs = get(ray_cluster, "/api/jobs/")
    assert "from the job" in jobs
    secret = Path(s3.env["AWS_SHARED_CREDENTIALS_FILE"]).read_text().partition("aws_secret_access_key = ")[2].split()[0]
    for private in (secret, s3.env["AWS_SHARED_CREDENTIALS_FILE"], s3.endpoint):
        assert private not in jobs  # it came as inherited environment, which Ray does not record


def test_a_head_has_as_many_cpus_as_it_is_told_also_none(tmp_path: Path) -> None:
    assert "--num-cpus=0" in start_command(str(tmp_path), 0)
    assert not any("--num-cpus" in word for word in start_command(str(tmp_path), None))


def test_the_port_that_a_head_is_given_is_free_and_none_that_the_system_hands_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ports = {pick_port() for _ in range(100)}
    assert all(1024 <= port < 32768 for port in ports)
    assert len(ports) > 90  # two heads that start at once hardly take the same
    taken = min(ports)
    choices = iter([taken, *ports])
    monkeypatch.setattr("secrets.randbelow", lambda _: next(choices) - 10000)
    with socket.create_server((LOOPBACK, taken)):
        assert pick_port() != taken


def test_the_exit_code_is_the_jobs_own(ray_cluster: RayHead, tmp_path: Path) -> None:
    assert ray_cluster.submit(["python", "-c", "raise SystemExit(3)"], tmp_path, submission_id="three") == 3
    with pytest.raises(UserError, match="three"):
        ray_cluster.submit(["true"], tmp_path, submission_id="three")


def test_a_job_that_cannot_be_submitted_is_a_users_mistake(ray_cluster: RayHead, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not take"):
        ray_cluster.submit(["true"], tmp_path / "missing")


def test_the_dashboard_wants_the_token(ray_cluster: RayHead) -> None:
    assert get(ray_cluster, "/api/jobs/")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{ray_cluster.dashboard}/api/jobs/", timeout=30)


def test_a_terminated_owner_lets_the_job_finish_its_checkpoint(ray_cluster: RayHead, tmp_path: Path) -> None:
    started, saved = tmp_path / "started", tmp_path / "saved"
    script = f"""
        import pathlib, signal, sys, time
        def save(*_):
            time.sleep(5)  # longer than Ray waits by default
            pathlib.Path({str(saved)!r}).touch()
            sys.exit()
        signal.signal(signal.SIGTERM, save)
        pathlib.Path({str(started)!r}).touch()
        time.sleep(600)
    """
    work = tmp_path / "work"
    work.mkdir()
    arguments = json.dumps([asdict(ray_cluster), textwrap.dedent(script), str(work), str(RUNTIME_ENV)])
    with subprocess.Popen([*python(SUBMITTER), arguments]) as owner:
        wait_until(started.exists)
        owner.send_signal(signal.SIGTERM)
    assert saved.exists()
    assert owner.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_heads_side_by_side_and_one_ends_alone(ray_cluster: RayHead, tmp_path: Path) -> None:
    with ray_head(tmp_path, {}, num_cpus=1) as other:
        assert other.address != ray_cluster.address
        assert processes_of(tmp_path / "token")
    assert processes_of(tmp_path / "token") == []
    assert json.loads(get(ray_cluster, "/api/jobs/")) is not None
    assert (tmp_path / "logs" / "gcs_server.out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_of_a_killed_owner_and_its_job(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"""
        import pathlib
        from parrot_dist.local.cluster import ray_head
        job = "import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
        work = pathlib.Path({str(tmp_path / "work")!r})
        work.mkdir()
        with ray_head(pathlib.Path({str(tmp_path)!r}), {{}}, num_cpus=1) as head:
            head.submit(["python", "-c", job], work)
    """
    with subprocess.Popen(python(script), env=client_environment(os.environ)) as owner:
        wait_until(started.exists, timeout_s=300)
        owner.kill()
    wait_until(lambda: processes_of(tmp_path / "token") == [])
    # The files of the dead head are all that nobody could remove.
    for scratch in set(re.findall(r"/tmp/ray-\w+", (tmp_path / "ray.log").read_text())):
        shutil.rmtree(scratch)
