"""A Slurm cluster of two nodes of the tests' own, with an S3 server in its network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parrot_dist.local.cluster import client_environment
from parrot_dist.local.process import child
from parrot_dist.local.process import wait_until as wait_until_ready
from parrot_dist.local.s3 import client_env
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
SLURMLAB = str(REPOSITORY / "tests" / "slurm" / "slurmlab")
LOGIN_ADDRESS = "10.77.0.1"
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
NAMESPACES = "unshare --net --pid --mount --uts --fork ip link add bridge type bridge"
GOING_ON = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}
POLL_S = 0.3  # each look at a job takes processes, and the cores are few


def missing() -> str | None:
    """What this machine lacks for a lab, and what to do about it."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)}: not found; apt-get install -y --no-install-recommends {PACKAGES}"
    if os.geteuid() != 0 or subprocess.run(NAMESPACES.split(), capture_output=True).returncode:
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
        """`sbatch slurm/parrot.sbatch`."""
        options = (f"--output={self.folder}/job-%j.out", "--time=15", *options)
        return Job(self, self.run("sbatch", "--parsable", *options, "slurm/parrot.sbatch", *words))

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

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be said of the job before it ends."""
        wait_until(lambda: condition() or self.state not in GOING_ON, timeout_s=500, poll_s=POLL_S)
        assert condition(), self.output

    def wait_for_end(self) -> tuple[str, str]:
        """Wait until the job has ended; its state, and its exit code with the signal that ended it."""
        wait_until(lambda: self.state not in GOING_ON, timeout_s=500, poll_s=POLL_S)
        return self.state, self.facts["ExitCode"]

    def listeners(self) -> list[tuple[str, str]]:
        """Address (HOST:PORT) and name of every process of the job that listens on its first node."""
        own = self._processes()
        sockets = ["nsenter", f"--target={next(iter(own))}", "--net", "ss", "-ltnpH"]
        lines = subprocess.run(sockets, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        found = [(line.split()[3], re.findall(r'"([^"]+)",pid=(\d+)', line)) for line in lines]
        return [(address, name) for address, processes in found for name, number in processes if number in own]

    def nodes_of_workers(self) -> list[str]:
        """The node of each of Ray Train's workers."""
        return sorted(node for name, node in self._processes().values() if name == "ray::RayTrainWo")

    def _processes(self) -> dict[str, tuple[str, str]]:
        """Process -> its name and its node, of the job's; the nodes' processes can be seen from outside of the lab."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                environ = (process / "environ").read_text()
                if f"SLURM_JOB_ID={self.number}\0" in environ:
                    node = re.search(r"SLURMD_NODENAME=(\w+)", environ)
                    found[process.name] = (process / "comm").read_text().strip(), node[1] if node else ""
        return found


@contextmanager
def slurm_lab(folder: Path) -> Iterator[Lab]:
    """Run a lab in `folder`, an empty one; it ends with the block or its owner."""
    env = client_environment({"SLURMLAB": str(folder), "PARROT_VENV": sys.prefix})
    ready, log = folder / "ready", folder / "slurmlab.log"
    with child([SLURMLAB, "run"], env, log) as cluster:
        wait_until_ready(ready.exists, cluster, log, timeout_s=60)
        store = folder / "s3"
        store.mkdir()
        endpoint, log = store / "endpoint", folder / "s3.log"
        server = [sys.executable, "-m", "parrot_dist.local.s3", str(store), "--host", LOGIN_ADDRESS]
        with child([SLURMLAB, "exec", *server], env, log) as process:
            wait_until_ready(endpoint.exists, process, log, timeout_s=60)
            quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}  # 2 s by default, which a run waits for in its end
            yield Lab(folder, env | quick | client_env(store, endpoint.read_text()))
