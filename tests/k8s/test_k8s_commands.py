"""The commands in the manifests, run as they stand: as the pods' user, with their environment and their file system."""

from __future__ import annotations

import configparser
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from parrot_dist.local.cluster import ANY_PORT, LOOPBACK, SETTINGS, dashboard_in, pick_port, start_command
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.local.process import child, wait_until
from parrot_dist.local.s3 import S3Server
from parrot_dist.training import checkpoint
from tests.corpus import write_corpus
from tests.k8s.pods import (
    JOBS,
    REPOSITORY,
    Tree,
    confined,
    document,
    documents,
    image_environment,
    small_job,
    templates_of,
)

pytestmark = pytest.mark.cluster
JOB = documents(JOBS[0])[0]
PODS = {part: template["spec"] for part, template in templates_of(JOB).items()}
LIMIT_S = 300
# A cluster of several nodes listens beyond loopback, too; the token keeps others out while the test lasts.
SEVERAL_NODES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}


@pytest.fixture(scope="module", autouse=True)
def able() -> None:
    """Skips, with the reason, where a pod's user and file system cannot be had."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root, on Linux, can play a pod")
    if not shutil.which("setpriv") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no setpriv, or no right to unshare --mount: pods cannot be played here")
    if REPOSITORY.stat().st_mode & 0o005 != 0o005:
        pytest.skip(f"{REPOSITORY} is for its owner only, and a pod has another user")


@pytest.fixture
def job_folder(bucket_url: str, tmp_path: Path) -> Path:
    """What the ConfigMap parrot-job mounts: its job, made small, on a corpus and encoders in the bucket."""
    write_corpus(f"{bucket_url}/shards", speakers=8, clips=4)
    write_random_encoders(f"{bucket_url}/encoders")
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.yaml").write_text(small_job(bucket_url))
    return folder


@pytest.fixture
def store(s3: S3Server, bucket_url: str) -> dict[str, str]:
    """What the ConfigMap and the Secret parrot-store set, with the places of this test."""
    settings = document("settings", "ConfigMap", "parrot-store")["data"]
    settings = {name: value.replace("s3://parrot/", f"{bucket_url}/") for name, value in settings.items()}
    keys = configparser.ConfigParser()
    keys.read(s3.env["AWS_SHARED_CREDENTIALS_FILE"])
    secret = {name.upper(): value for name, value in keys["default"].items()}
    return settings | secret | {"AWS_ENDPOINT_URL": s3.endpoint}


def environment(pod: Tree, store: dict[str, str]) -> dict[str, str]:
    """What the image, the ConfigMap and the Secret set in the first container of `pod`."""
    path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return path | image_environment() | (store if "envFrom" in pod["containers"][0] else {})


def head_command(port: int) -> list[str]:
    """`ray start` with the manifest's parameters, as the operator writes it, but on ports that are free."""
    parameters = JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    options = [f"--{name}={value}" for name, value in parameters.items()]
    return [*start_command("/tmp/ray", None), f"--port={port}", *options]


def worker_command(port: int, number: int) -> list[str]:
    """The same for a worker: its CPUs are the container's limit, its address is one of its own."""
    cpus = PODS["workers"]["containers"][0]["resources"]["limits"]["cpu"]
    ports = [option for option in ANY_PORT if not option.startswith(("--port=", "--dashboard-port="))]
    node = [f"--address={LOOPBACK}:{port}", f"--node-ip-address=127.0.0.{number}", f"--num-cpus={cpus}"]
    return ["ray", "start", "--block", *node, "--object-store-memory=200000000", *ports]


@contextmanager
def cluster(folder: Path, store: dict[str, str], job_folder: Path, token: dict[str, str]) -> Iterator[str]:
    """The head and the workers of the job, each in its pod; yields the dashboard's address."""
    port = pick_port()
    replicas = JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    commands = {f"workers-{number}": worker_command(port, number) for number in range(2, 2 + replicas)}

    def start(name: str, command: list[str]) -> Callable[[], None]:
        pod, log = PODS[name.partition("-")[0]], folder / f"{name}.log"
        env = SETTINGS | SEVERAL_NODES | environment(pod, store) | token
        process = running.enter_context(child([*confined(pod, {"job": job_folder}), *command], env, log))
        return lambda: wait_until(lambda: "Ray runtime started" in log.read_text(), process, log, timeout_s=120)

    with ExitStack() as running:
        start("head", head_command(port))()
        for started in [start(name, command) for name, command in commands.items()]:
            started()
        yield dashboard_in(folder / "head.log")


@pytest.mark.timeout(2 * LIMIT_S)
def test_the_entrypoint_trains_in_confined_pods(
    job_folder: Path, store: dict[str, str], tmp_path: Path, bucket_url: str
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    runtime_env = json.dumps(json.dumps(yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])))
    with cluster(tmp_path, store, job_folder, token) as dashboard:
        options = f"--address {dashboard} --submission-id parrot --runtime-env-json {runtime_env}"
        submission = f"ray job submit {options} -- {JOB['spec']['entrypoint']} ;"  # by the operator's pattern
        command = [*confined(PODS["submitter"], {}), "/bin/bash", "-ce", "--", submission]
        env = environment(PODS["submitter"], store) | token
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    newest = checkpoint.newest(f"{bucket_url}/runs/parrot")
    assert newest
    assert newest.manifest.finished
    assert newest.url in ended.stdout
    assert store["AWS_SECRET_ACCESS_KEY"] not in ended.stdout + ended.stderr


@pytest.mark.parametrize("part", PODS)
def test_a_pod_can_write_below_tmp_only_and_gain_nothing(part: str, tmp_path: Path) -> None:
    script = """
        id -u; grep -E 'CapPrm|CapBnd|NoNewPrivs' /proc/self/status
        touch /tmp/file && echo written
        ! touch "$1/file" /usr/file 2>&1
    """
    tmp_path.chmod(0o777)
    command = [*confined(PODS[part], {"job": tmp_path}), "bash", "-c", script, "bash", str(REPOSITORY)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[0] == "1000"
    assert [line.split()[1].strip("0") for line in lines[1:4]] == ["", "", "1"]
    assert lines[4] == "written"
    assert all("Read-only file system" in line for line in lines[5:7])
    assert not (REPOSITORY / "file").exists()
