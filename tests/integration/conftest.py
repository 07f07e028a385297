"""Fixtures of the tests of whole programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from parrot_dist.local.cluster import RayHead
from parrot_dist.local.s3 import S3Server
from tests.jobs import Material, settings, train_here, write_material

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def material(s3: S3Server) -> Material:
    """A corpus and two encoders on S3, which nobody changes."""
    return write_material(f"s3://{s3.bucket}/material")


@dataclass(frozen=True)
class FinishedRun:
    """A run that nothing disturbed: two workers, every step's checkpoint kept."""

    words: list[str]
    url: str
    code: int
    output: str


@pytest.fixture(scope="session")
def finished_run(material: Material, s3: S3Server, ray_cluster: RayHead) -> FinishedRun:
    """The job as the README runs it, by `ray job submit`."""
    output = f"s3://{s3.bucket}/finished"
    words = settings(material, output, "checkpoint.every_steps=1", "checkpoint.keep=100")
    lines: list[str] = []
    command = ["python", "-m", "parrot_dist.train", *words]
    code = ray_cluster.submit(command, REPOSITORY, REPOSITORY / "jobs" / "runtime_env.yaml", show=lines.append)
    return FinishedRun(words, f"{output}/run", code, "\n".join(lines))


@pytest.fixture(scope="session")
def trained(material: Material, s3: S3Server) -> Callable[[str], str]:
    """Gives the URL of a run of one epoch with the head of this name, trained in this process."""

    @cache
    def run(head: str) -> str:
        words = [f"fusion.name={head}", "optim.epochs=1", "checkpoint.every_steps=5"]
        return train_here(settings(material, f"s3://{s3.bucket}/trained-{head}", *words))

    return run
