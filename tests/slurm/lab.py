"""A Slurm cluster of two nodes of the tests' own, with an S3 server in its network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parrot_dist.local.cluster import client_environment
from parrot_dist.local.process import child, wait_until
from parrot_dist.local.s3 import client_env

REPOSITORY = Path(__file__).parents[2]
SLURMLAB = str(REPOSITORY / "tests" / "slurm" / "slurmlab")
LOGIN_ADDRESS = "10.77.0.1"
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
GOING_ON = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}


def missing() -> str | None:
    """What this machine lacks for a lab, and what to do about it."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)}: not found; apt-get install -y --no-install-recommends {PACKAGES}"
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        return "namespaces of its own are refused; needs root on a virtual machine or in a privileged container"
    return None


@dataclass(frozen=True)
class Lab:
    """A running cluster; all its files are in `folder`, and `env` is the environment of its login node."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a command on the login node; its output."""
        return subprocess.run(
            [SLURMLAB, "exec", *command], cwd=REPOSITORY, env=self.env, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def submit(self, *words: str, options: tuple[str, ...] = ()) -> Job:
        """`sbatch slurm/parrot.sbatch` on both nodes, with one core on each."""
        output = f"--output={self.folder}/job-%j.out"
        resources = ("--nodes=2", "--cpus-per-task=1", "--time=15", *options)
        return Job(self, self.run("sbatch", "--parsable", output, *resources, "slurm/parrot.sbatch", *words))

    def crash(self, node: str) -> None:
        """Cut the power of a node."""
        subprocess.run([SLURMLAB, "crash", node], env=self.env, check=True)

    def boot(self, node: str) -> None:
        """Switch a node on again."""
        subprocess.run([SLURMLAB, "boot", node], env=self.env, check=True)


@dataclass(frozen=True)
class Job:
    """A job of a lab."""

    lab: Lab
    number: str

    @property
    def output(self) -> str:
        file = self.lab.folder / f"job-{self.number}.out"
        return file.read_text() if file.exists() else ""

    @property
    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says, for example JobState, ExitCode, Restarts, NodeList."""
        return dict(re.findall(r"(\w+)=(\S*)", self.lab.run("scontrol", "-o", "show", "job", self.number)))

    @property
    def state(self) -> str:
        return self.facts["JobState"]

    def scancel(self, *options: str) -> None:
        self.lab.run("scancel", *options, self.number)


@contextmanager
def slurm_lab(folder: Path) -> Iterator[Lab]:
    """Run a lab in `folder`, an empty one; it ends with the block or its owner."""
    env = client_environment({"SLURMLAB": str(folder), "PARROT_VENV": sys.prefix})
    ready, log = folder / "ready", folder / "slurmlab.log"
    with child([SLURMLAB, "run"], env, log) as cluster:
        wait_until(ready.exists, cluster, log, timeout_s=60)
        store = folder / "s3"
        store.mkdir()
        endpoint, log = store / "endpoint", folder / "s3.log"
        server = [sys.executable, "-m", "parrot_dist.local.s3", str(store), "--host", LOGIN_ADDRESS]
        with child([SLURMLAB, "exec", *server], env, log) as process:
            wait_until(endpoint.exists, process, log, timeout_s=60)
            yield Lab(folder, env | client_env(store, endpoint.read_text()))
