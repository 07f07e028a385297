"""The paper's tables on a real Ray cluster, from miniatures of its three corpora in their own layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from parrot_dist import storage
from parrot_dist.local.cluster import RayHead, client_environment
from parrot_dist.local.encoders import write_all
from shards import build
from tests.corpus import tone
from tests.layouts import make_cremad, make_emodb, make_mesd

pytestmark = pytest.mark.cluster

JOBS = Path(__file__).parents[2] / "jobs" / "paper"
CORPORA = {
    "cremad": (make_cremad, ("1001", "1002", "1003", "1004")),
    "emodb": (make_emodb, ("03", "08", "09", "10")),
    "mesd": (make_mesd, ("C", "F", "M")),
}


def wave_of(speaker: str, emotion: str, take: int) -> np.ndarray:
    return tone(100 + 40 * len(emotion), 0.3, seed=len(speaker) + take)


def papertable(files: list[str], head: RayHead, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "parrot_dist.papertable", "--config", *files]
    done = subprocess.run(
        command, env=client_environment(head.env) | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_papers_tables_in_miniature(tmp_path: Path, bucket_url: str, ray_cluster: RayHead) -> None:
    for name, (make, speakers) in CORPORA.items():
        make(tmp_path / name, wave_of, speakers, 2)
        settings = build.parse([f"corpus={name}", f"source={tmp_path / name}", f"out={bucket_url}/corpora/{name}"])
        build.build(settings, build.survey(settings))
    specs = write_all(f"{bucket_url}/encoders")
    # The jobs of the paper as they stand, but for the encoders, and sized for a test.
    small = yaml.safe_load((JOBS / "common.yaml").read_text()) | {
        "output": f"{bucket_url}/out",
        "optim": {"batch_size": 8, "epochs": 1},
        "data": {"lanes": 4, "split": {"folds": 2}},
        "scale": {"cpus_per_worker": 2},  # which makes two processes of the cluster's four logical CPUs
        "grid": {"heads": ["fcn", "parrot"], "encoders": {name: {"source": specs[name]} for name in ("A(T)", "H")}},
    }
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(small))
    files = [str(tmp_path / "common.yaml"), *(str(JOBS / f"{name}.yaml") for name in CORPORA)]
    environment = {"PARROT_CORPORA": f"{bucket_url}/corpora"}
    output = papertable(files, ray_cluster, environment)
    assert "embedded 6/6" in output
    assert "18 trainings, 0 of them done before" in output
    place = f"{bucket_url}/out/papertable"
    cells = json.loads(storage.read_bytes(f"{place}/table.json"))["cells"]
    assert len(cells) == 18
    assert {cell["corpus"] for cell in cells} == {"CREMA-D", "Emo-DB", "MESD"}
    tested = sum(np.sum(cell["confusion"]) for cell in cells if (cell["corpus"], cell["head"]) == ("CREMA-D", "parrot"))
    assert tested == 48
    markdown = storage.read_bytes(f"{place}/table.md").decode()
    assert "## Emo-DB" in markdown
    assert "A(T) + H" in markdown
    # The same again does what is missing, and gives the same.
    lost = next(name for name in storage.list_files(place) if "/parrot/" in name)
    storage.delete(storage.join(place, lost))
    assert "18 trainings, 17 of them done before" in papertable(files, ray_cluster, environment)
    assert storage.read_bytes(f"{place}/table.md").decode() == markdown
