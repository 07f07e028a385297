"""A Ray head of one's own on loopback: token authentication, a dashboard, no fixed port, jobs as on a real cluster.

Two of them run side by side, beside anybody else's, and ending one ends only what it started; so never `ray stop`,
which ends every Ray on the machine (ray#12264).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parrot_dist.errors import UserError
from parrot_dist.local.process import child, wait_until

LOOPBACK = "127.0.0.1"
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds loopback only, on Linux too
    "GLOO_SOCKET_IFNAME": "lo",  # by default these two choose a device by the host's name, or any but this one
    "NCCL_SOCKET_IFNAME": "lo",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "AUTOSCALER_METRIC_PORT": "0",  # any free one; the fixed ones are for one head on a machine
    "DASHBOARD_METRIC_PORT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there is no other node to move work to
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # `report` waits for one of these polls; 2 s suit a large cluster
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise every line printed by a worker appears twice
}
ANY_PORT = (
    "--port=0",
    "--dashboard-port=0",
    "--dashboard-agent-listen-port=0",
    "--dashboard-agent-grpc-port=0",
    "--runtime-env-agent-port=0",
    "--metrics-export-port=0",
    "--object-manager-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
)


@dataclass(frozen=True)
class RayHead:
    """A running head: where it is, and the environment that makes a process its client."""

    address: str
    dashboard: str
    env: dict[str, str]

    def submit(
        self,
        command: list[str],
        working_dir: Path,
        runtime_env: Path | None = None,
        submission_id: str | None = None,
        show: Callable[[str], None] = print,
    ) -> int:
        """Run `ray job submit`, each line of its output given to `show`; the exit code of `command` itself.

        When this process is interrupted (KeyboardInterrupt, SystemExit), the job is asked to stop and awaited first,
        so that it can write a checkpoint.

        Raises:
            UserError: the cluster did not take the job, for example because of a used `submission_id`.
        """
        name = submission_id or f"parrot-{uuid.uuid4().hex[:12]}"
        if submission_id and self._job(name):
            raise UserError(f"there has been a job {name} on this cluster; each submission needs an id of its own")
        plain = ["--log-style=pretty", "--log-color=false"]  # without, a file gets time stamps and escape codes
        options = [*plain, "--submission-id", name, "--working-dir", str(working_dir)]
        options += ["--runtime-env", str(runtime_env)] if runtime_env else []
        # Less than errors is about every file that .rayignore leaves out.
        submission = ["ray", "--logging-level", "error", "job", "submit", *options, "--", *command]
        env = client_environment(self.env)
        # In a session of its own Ctrl-C does not reach it, and the output goes on until the job has ended.
        with subprocess.Popen(
            submission, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                _relay(process, show)
            except BaseException:
                stop = ["ray", "job", "stop", name]
                if subprocess.run(stop, env=env, capture_output=True, start_new_session=True).returncode:
                    process.terminate()  # the cluster has not got the job yet
                _relay(process, show)
                raise
        job = self._job(name)
        if job is None:
            raise UserError(f"the cluster did not take the job {name}; the reason is above")
        if job["driver_exit_code"] is None:
            raise UserError(f"the job {name} has no exit code, its status is {job['status']}: {job['message']}")
        return int(job["driver_exit_code"])

    def _job(self, name: str) -> dict[str, Any] | None:
        """What the cluster knows about the job, or None. (`ray job submit` hides the exit code of the job.)"""
        token = Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.dashboard}/api/jobs/{name}", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                job: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return job


def _relay(process: subprocess.Popen[str], show: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        show(line.rstrip())
    process.wait()


@contextmanager
def ray_head(folder: Path, env: Mapping[str, str], num_cpus: int | None = None) -> Iterator[RayHead]:
    """Run a head, with `env` in the environment of all its jobs, that ends with the block or its owner.

    What `env` holds (credentials) reaches the jobs as inherited environment and never enters Ray's own records.
    `num_cpus` are logical: small workers may be more than the cores. `folder` receives the token and Ray's logs.

    Raises:
        UserError: it did not start; with the end of its log.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    token, log = folder / "token", folder / "ray.log"
    token.unlink(missing_ok=True)
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    settings = SETTINGS | {"RAY_AUTH_TOKEN_PATH": str(token)}
    # Not below `folder`: the path of a Unix socket ends at 107 bytes, and Ray uses up 65 of them.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        address = Path(temp, "ray_current_cluster")  # what Ray writes last
        try:
            with child(start_command(temp, num_cpus), client_environment({**env, **settings}), log) as process:
                wait_until(lambda: address.exists() and address.read_text() != "", process, log, timeout_s=120)
                dashboard = dashboard_in(log)
                places = {"RAY_ADDRESS": address.read_text(), "RAY_API_SERVER_ADDRESS": dashboard}
                yield RayHead(address.read_text(), dashboard, settings | places)
        finally:
            shutil.rmtree(folder / "logs", ignore_errors=True)
            with suppress(FileNotFoundError):  # it ended before it had any
                shutil.copytree(Path(temp, "session_latest", "logs"), folder / "logs")


def start_command(temp: str, num_cpus: int | None) -> list[str]:
    """`ray start` for a head on loopback that keeps its files in `temp`."""
    return [
        *("ray", "start", "--head", "--block", "--include-dashboard=true", "--log-color=false"),
        *(f"--node-ip-address={LOOPBACK}", f"--dashboard-host={LOOPBACK}", f"--temp-dir={temp}"),
        "--object-store-memory=200000000",  # bytes; nothing large goes through it, and /dev/shm may be small
        *([f"--num-cpus={num_cpus}"] if num_cpus is not None else []),
        *ANY_PORT,
        f"--ray-client-server-port={pick_port()}",  # cannot choose one by itself, nor be left out
    ]


def pick_port() -> int:
    """A port of loopback for a server that starts soon: a random one that is free, and that nobody else is given.

    It is below those (from 32768) that the system hands out, which all of Ray's other servers take.
    """
    while True:
        port = 10000 + secrets.randbelow(22768)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
                return port
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise


def dashboard_in(log: Path) -> str:
    """The URL of the dashboard, from what `ray start` printed (it chose the port itself)."""
    found = re.search(r"RAY_API_SERVER_ADDRESS='([^']+)'", log.read_text())
    if not found:
        raise UserError(f"Ray started without a dashboard; see {log}")
    return found[1]


def client_environment(env: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `env`, no other cluster, and this interpreter's `ray` and `python`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return inherited | {"PATH": path} | dict(env)
