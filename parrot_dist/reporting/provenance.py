"""Which code a run was made by: the commit it was started from, and the versions of what it ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parrot_dist import storage

PROVENANCE = "provenance.json"  # of a run: one record for each start by other code than the one before
PACKAGES = ("parrot-dist", "torch", "transformers", "ray", "POT")


def provenance(folder: Path | None = None) -> dict[str, str]:
    """Program -> version of this process, and `commit` where the code in `folder` (this package's) is a checkout.

    What Ray ships to a cluster has no `.git`, and an installed package none of its own: there PARROT_COMMIT may say it.
    """
    record = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # this one, where a Ray job runs from its uploaded folder
            record[name] = version(name)
    commit = os.environ.get("PARROT_COMMIT") or find_commit(folder or Path(__file__).parents[2])
    return record | ({"commit": commit} if commit else {})


def record_start(run_url: str) -> None:
    """Note in the run at `run_url` what starts or resumes it, unless that is what it was before."""
    starts = read_starts(run_url)
    if starts[-1:] != [provenance()]:
        data = json.dumps([*starts, provenance()], indent=1).encode()
        storage.write_bytes(storage.join(run_url, PROVENANCE), data)


def read_starts(run_url: str) -> list[dict[str, str]]:
    """What `record_start` noted, oldest first; nothing for a checkpoint that was copied away from its run."""
    starts: list[dict[str, str]] = json.loads(storage.find_bytes(storage.join(run_url, PROVENANCE)) or b"[]")
    return starts


def find_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`, with a word if files have been changed since; None without git or `.git`."""
    if not (folder / ".git").exists():  # a repository further up is another project's
        return None
    try:
        # --exclude: the commit's own name, not that of a tag before it.
        describe = ["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, with changes"]
        words = ["git", "-C", str(folder), *describe]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
