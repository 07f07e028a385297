from __future__ import annotations

import subprocess

import pytest

from parrot_dist.reporting import provenance as module
from parrot_dist.reporting.provenance import provenance, read_starts, record_start


def git(folder, *words):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    done = subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_says_its_commit_and_whether_it_was_changed(tmp_path):
    assert "commit" not in provenance(tmp_path)
    git(tmp_path, "init", "--quiet")
    assert "commit" not in provenance(tmp_path)  # nothing committed yet
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert provenance(tmp_path)["commit"] == commit
    (tmp_path / "file").write_text("two")
    assert provenance(tmp_path)["commit"] == f"{commit}, with changes"
    (tmp_path / "below").mkdir()
    assert "commit" not in provenance(tmp_path / "below")


def test_versions_are_those_of_what_computes():
    assert provenance().keys() >= {"python", "parrot-dist", "torch", "transformers", "ray"}


def test_a_run_remembers_every_start_by_other_code_once(tmp_path, monkeypatch: pytest.MonkeyPatch):
    run = str(tmp_path / "run")
    assert read_starts(run) == []
    for torch in ("1", "1", "2", "1"):
        monkeypatch.setattr(module, "provenance", lambda torch=torch: {"torch": torch})
        record_start(run)
    assert read_starts(run) == [{"torch": "1"}, {"torch": "2"}, {"torch": "1"}]
