"""The demo's corpus and small encoders on local disk, for benchmarks of whole runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from parrot_dist import configuration
from parrot_dist.config import Config
from parrot_dist.local.encoders import write_all
from parrot_dist.training.precision import emulated

SPOKEN = Path(".demo/spoken")  # shared with `make demo`
CLASSES = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")


def make_material(folder: Path) -> dict[str, str]:
    """Speak the corpus, build it to `folder`/shards, and write the paper's eight encoders in small; name -> source."""
    run("shards.speak", str(SPOKEN))
    run("shards.build", "corpus=spoken", f"source={SPOKEN}", f"out={folder / 'shards'}")
    return write_all(str(folder.absolute() / "encoders"))


def run(module: str, *arguments: str) -> None:
    """Run `python -m module`, its output left out."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL)


def job(folder: Path, sources: dict[str, str], *words: str) -> Config:
    """The demo's job on this material, one worker, no block unfrozen; float32 on a CPU that only emulates bf16."""
    return configuration.load(
        None,
        [
            "name=run",
            f"output={folder / 'runs'}",
            f"data.shards={folder / 'shards'}",
            f"data.classes=[{','.join(CLASSES)}]",
            "data.split.validation=0.15",
            f"encoders.mamba.source={sources['A(B)']}",
            f"encoders.attention.source={sources['H']}",
            "fusion.reference_rows=192",
            "scale.num_workers=1",
            f"optim.precision={'float32' if emulated('bf16', torch.device('cpu')) else 'bf16'}",
            *words,
        ],
    )
