"""Fixtures of the tests of whole programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.local.cluster import RayHead
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.local.s3 import S3Server
from tests.corpus import write_corpus
from tests.jobs import Material, settings, short_job, train_here, write_material
from tests.ranks import losses, train

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
def finished_run(
    material: Material, s3: S3Server, ray_cluster: RayHead, tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    """The bare job on a prepared cluster, `ray job submit ... -- python -m parrot_dist.train`."""
    output = f"s3://{s3.bucket}/finished"
    words = settings(material, output, "checkpoint.every_steps=1", "checkpoint.keep=100")
    places = ("data.shards=", "output=")
    file = OmegaConf.from_dotlist([word for word in words if not word.startswith(places)])
    storage.write_bytes(f"{output}.yaml", OmegaConf.to_yaml(file).encode())
    places_of = {"PARROT_CONFIG": f"{output}.yaml", "PARROT_SHARDS": material.corpus, "PARROT_OUTPUT": output}
    env = OmegaConf.merge(OmegaConf.load(REPOSITORY / "jobs" / "runtime_env.yaml"), {"env_vars": places_of})
    OmegaConf.save(env, runtime_env := tmp_path_factory.mktemp("job") / "runtime_env.yaml")
    lines: list[str] = []
    code = ray_cluster.submit(["python", "-m", "parrot_dist.train"], REPOSITORY, runtime_env, show=lines.append)
    return FinishedRun(words, f"{output}/run", code, "\n".join(lines))


@pytest.fixture(scope="session")
def trained(material: Material, s3: S3Server) -> Callable[[str], str]:
    """Gives the URL of a run of one epoch with the head of this name, trained in this process."""

    @cache
    def run(head: str) -> str:
        words = [f"fusion.name={head}", "optim.epochs=1", "checkpoint.every_steps=5"]
        return train_here(settings(material, f"s3://{s3.bucket}/trained-{head}", *words))

    return run


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A corpus of short clips and two encoders on local disk, which nobody changes."""
    folder = tmp_path_factory.mktemp("short")
    corpus = write_corpus(str(folder / "corpus"), speakers=8, clips=9, seconds=0.4)
    return Material(corpus, write_random_encoders(str(folder / "encoders")))


@pytest.fixture(scope="session")
def undisturbed(short: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[float]]:
    """The short job on one rank, as nothing disturbed it, and its losses."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = short_job(short, folder)
    how, events = train(config, 1, folder)
    assert how == "finished"
    return config, losses(events)
