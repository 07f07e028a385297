"""`make bench-papertable`: the paper's grid on the demo's corpus, on as many cores as this machine has.

Eight small encoders alone (fcn, cnn) and in their 28 pairs (concat, parrot), 5 folds, 10 epochs; then the same command
again after two of the results were lost. ARGS="--heads concat,parrot" leaves the single encoders out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.benchmarks.spoken import CLASSES, make_material


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="fcn,cnn,concat,parrot")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = make_material(folder)
        job = {
            "name": "spoken",
            "output": str(folder / "out"),
            "data": {"shards": str(folder / "shards"), "classes": list(CLASSES), "split": {"folds": 5}},
            "optim": {"epochs": 10},
            "grid": {
                "heads": settings.heads.split(","),
                "encoders": {name: {"source": source} for name, source in sources.items()},
            },
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
        first = minutes(folder / "job.yaml")
        for lost in sorted((folder / "out" / "papertable").rglob("fold0-*.json"))[:2]:
            lost.unlink()
        again = minutes(folder / "job.yaml")
    print(f"\n{os.cpu_count()} cores: {first:.1f} minutes, {again:.1f} for the same command with two results lost")


def minutes(file: Path) -> float:
    """How long the table takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "parrot_dist.papertable", "--config", str(file)], check=True)
    return (time.perf_counter() - began) / 60


if __name__ == "__main__":
    main()
