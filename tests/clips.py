"""A small corpus of noise in folders, and builds of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from parrot_dist.data.index import Index
from shards import build
from shards.settings import Settings

SPEAKERS, LABELS, TAKES = ("anna", "ben", "cleo"), ("anger", "joy"), 4
CLIPS = len(SPEAKERS) * len(LABELS) * TAKES


def write_clips(folder: Path) -> Path:
    """Write 24 clips of various lengths, rates and channels, in a folder a label; returns `folder`."""
    rng = np.random.default_rng(0)
    number = 0
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for speaker in SPEAKERS:
            for take in range(TAKES):
                rate = (8000, 16000, 22050)[number % 3]
                samples = 0.2 * rng.standard_normal((rate // 4 + 100 * number, 1 + number % 2))
                soundfile.write(folder / label / f"{speaker}_{take}.wav", samples, rate)
                number += 1
    return folder


def settings(corpus: Path, out: Path | str, *words: str) -> Settings:
    """The settings of a build that makes some shards of these clips."""
    return build.parse(["corpus=folder", f"source={corpus}", f"out={out}", "shard_mb=0.05", *words])


def run(corpus: Path, out: Path, *words: str) -> tuple[Index, dict[str, str]]:
    """Build with these settings; what `build.build` returns."""
    chosen = settings(corpus, out, *words)
    return build.build(chosen, build.survey(chosen))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `python -m shards.build`, in this process."""
    monkeypatch.setattr("sys.argv", ["shards.build", *map(str, words)])
    return build.main()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder without folders."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
