"""What runs on this machine, read from /proc: the processes of a test's own Ray cluster."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path


def running() -> dict[int, tuple[str, int]]:
    """Process -> its command line, and its parent."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (folder / "cmdline").read_text(), parent
    return found


def actors(address: str, name: str) -> list[int]:
    """The processes of the actors of this name on the cluster at `address`: its raylets' children, on any node."""
    processes = running()
    raylets = [pid for pid, (command, _) in processes.items() if "/raylet" in command and address in command]
    return sorted(pid for pid, (command, parent) in processes.items() if name in command and parent in raylets)


def train_workers(address: str) -> list[int]:
    """The processes that train on the cluster at `address`, on any of its nodes."""
    return actors(address, "TrainWorker")


def data_processes(address: str) -> list[int]:
    """The processes that decode for those: each is forked from a server that is a worker's child."""
    processes, workers = running(), train_workers(address)
    servers = [pid for pid, (_, parent) in processes.items() if parent in workers]
    return [pid for pid, (_, parent) in processes.items() if parent in servers]


def family(pid: int) -> list[int]:
    """A process and all that descends from it."""
    found, processes = [pid], running()
    for parent in found:
        found += [child for child, (_, of) in processes.items() if of == parent]
    return found


def listening(pid: int) -> dict[str, str]:
    """Address and port, as /proc/net writes them, on which one of the `family` listens -> its command line."""
    rows = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]]
    address = {row[9]: row[1] for row in rows if row[3] == "0A"}  # by the number of the socket's inode
    found = {}
    for one in family(pid):
        with suppress(OSError):  # it, or one of its files, is gone
            command = Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ")
            for file in Path(f"/proc/{one}/fd").iterdir():
                with suppress(OSError):
                    number = re.sub(r"\D", "", os.readlink(file))
                    found |= {address[number]: command} if number in address else {}
    return found


def cut_power(pid: int) -> None:
    """Kill a process and all that descends from it, none of which gets to say a word."""
    for one in family(pid):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
