"""What .ci/run leaves out, and what fails it; the programs that it calls are stand-ins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"
ABLE = {"make": "true", "id": "echo 0", "unshare": "true", "dpkg": "false", "apt-get": "true"}


def ci(folder: Path, programs: dict[str, str]) -> tuple[int, str, list[str]]:
    """The exit code of .ci/run, what it printed, and which of `programs` it called, with their first argument."""
    calls = folder / "calls"
    for name, script in programs.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$1" >> {calls}\n{script}\n')
        program.chmod(0o755)
    ended = subprocess.run([RUN], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True)
    return ended.returncode, ended.stdout, calls.read_text().splitlines()


def test_the_launcher_is_tested_where_it_can_be(tmp_path: Path) -> None:
    code, said, calls = ci(tmp_path, ABLE)
    assert (code, said) == (0, "")
    assert calls[-1] == "make test-slurm"
    assert "apt-get install" in calls


def test_packages_that_are_there_are_not_asked_for(tmp_path: Path) -> None:
    code, _, calls = ci(tmp_path, ABLE | {"dpkg": "true", "apt-get": "false"})
    assert (code, calls[-1]) == (0, "make test-slurm")


@pytest.mark.parametrize(
    ("lacking", "wanted"),
    [
        ({"id": "echo 1000"}, "root"),
        ({"unshare": "false"}, "namespaces"),
        ({"unshare": 'case "$*" in *bridge*) false; esac'}, "a bridge"),
    ],
)
def test_what_the_machine_cannot_give_is_left_out_by_name(lacking: dict[str, str], wanted: str, tmp_path: Path) -> None:
    code, said, calls = ci(tmp_path, ABLE | lacking)
    assert code == 0
    assert said.startswith(f"left out: make test-slurm, which needs {wanted}")
    assert "make test-slurm" not in calls


@pytest.mark.parametrize("failing", ["update", "install"])
def test_packages_that_cannot_be_installed_fail_it(failing: str, tmp_path: Path) -> None:
    code, said, calls = ci(tmp_path, ABLE | {"apt-get": f'[ "$1" != {failing} ]'})
    assert code != 0
    assert "left out" not in said
    assert "make test-slurm" not in calls


@pytest.mark.parametrize("failing", ["test", "demo", "test-slurm"])
def test_what_fails_fails_it(failing: str, tmp_path: Path) -> None:
    assert ci(tmp_path, ABLE | {"make": f'[ "$1" != {failing} ]'})[0] != 0
