"""A tiny training job on storage: its settings, and its driver as a process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch.distributed as dist

from parrot_dist import configuration, storage
from parrot_dist.config import Config
from parrot_dist.local.cluster import client_environment
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import MANIFEST, Found
from parrot_dist.training.inference import Place
from parrot_dist.training.model import MODEL_PART, REFERENCE_PART
from parrot_dist.training.rank import train_rank
from tests.corpus import CLASSES, write_corpus
from tests.ranks import Listener
from tests.waiting import wait_until


@dataclass(frozen=True)
class Material:
    """What a job reads: a corpus of 72 clips by 8 speakers, and two encoders."""

    corpus: str
    encoders: dict[str, str]


def write_material(url: str) -> Material:
    """Write corpus and encoders below `url`."""
    corpus = write_corpus(storage.join(url, "corpus"), speakers=8, clips=9)
    return Material(corpus, write_random_encoders(storage.join(url, "encoders")))


def settings(material: Material, output: str, *words: str) -> list[str]:
    """The key=value words of a job of 3 epochs with 6 steps each."""
    return [
        "name=run",
        f"output={output}",
        f"data.shards={material.corpus}",
        f"data.classes=[{','.join(CLASSES)}]",
        "data.split.folds=4",
        "data.window=5",
        "data.lanes=4",
        f"encoders.mamba.source={material.encoders['mamba']}",
        f"encoders.attention.source={material.encoders['attention']}",
        "encoders.mamba.unfreeze=last:1",
        "encoders.attention.unfreeze=last:1",
        "optim.batch_size=8",
        "optim.epochs=3",
        "fusion.reference_rows=16",
        *words,
    ]


def short_job(material: Material, output: Path, *words: str) -> Config:
    """A job of 2 epochs with 6 steps each, in float32."""
    return configuration.load(
        None, settings(material, str(output), "optim.epochs=2", "optim.precision=float32", *words)
    )


def drop_reference(folder: Path) -> None:
    """Take the reference rows from a checkpoint on local disk, as if its run had been killed before it added them."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][REFERENCE_PART]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / REFERENCE_PART).unlink()


def train_here(words: list[str]) -> str:
    """Train as the only worker, in this process and without Ray; the URL of the run."""
    job = configuration.load(None, words)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train_rank(job, Place(), Listener(), lambda record: None)
    finally:
        dist.destroy_process_group()
    return job.run_url


def copy_without_reference(found: Found, url: str) -> None:
    """Write to `url` what `found` would be, had its run been killed while it stopped."""
    files = {name: facts for name, facts in found.manifest.files.items() if name != REFERENCE_PART}
    for name in files:
        storage.write_bytes(storage.join(url, name), checkpoint.read_part(found, name))
    manifest = json.dumps(asdict(replace(found.manifest, files=files)))
    storage.write_bytes(storage.join(url, checkpoint.MANIFEST), manifest.encode())


class Driver:
    """`python -m parrot_dist.train` as a process that does not outlive the block."""

    def __init__(self, words: list[str], env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "parrot_dist.train", *words]
        self.process = subprocess.Popen(
            command, env=client_environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.output = ""

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.finish()

    def wait_for(self, text: str) -> None:
        """Read the output up to the line that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"the run ended without saying {text!r}:\n{self.output}")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as `condition()`, which it does not say."""
        wait_until(lambda: condition() or self.process.poll() is not None, 300)
        if not condition():
            self.finish()
            raise AssertionError(f"the run ended before:\n{self.output}")

    def finish(self, within_s: float = 500) -> int:
        """Read the output to its end; the exit code. It is killed if it has not ended after so many seconds."""
        assert self.process.stdout is not None
        timer = threading.Timer(within_s, self.process.kill)
        timer.start()
        self.output += self.process.stdout.read()
        timer.cancel()
        return self.process.wait()


def fingerprint(run_url: str, step: int | None = None) -> tuple[int, str]:
    """Step and SHA-256 of the parameters of a run's checkpoint at `step`, or of its newest."""
    found = [one for one in checkpoint.find_all(run_url) if step in (None, one.manifest.step)]
    return found[-1].manifest.step, found[-1].manifest.files[MODEL_PART]["sha256"]
