"""What the Hugging Face Hub leaves on a disk, for tests without it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest


def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub cannot be reached, and `cache`, which is returned, is all that was ever fetched from it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def fetched(cache: Path, repository: str, main: str, commits: Mapping[str, str]) -> None:
    """Put a repository into `cache`: commit -> folder with its files, and the commit that its branch `main` is at."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(main)
    for commit, folder in commits.items():
        shutil.copytree(folder, place / "snapshots" / commit)
