"""Cross-validation on a real Ray cluster: every speaker is tested once, by a run that has not heard it."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from parrot_dist import storage
from parrot_dist.data.index import read_index
from parrot_dist.local.cluster import RayHead, client_environment
from tests.jobs import Material, settings

pytestmark = pytest.mark.cluster


def crossval(words: list[str], head: RayHead) -> str:
    command = [sys.executable, "-m", "parrot_dist.crossval", *words]
    done = subprocess.run(command, env=client_environment(head.env), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_fold_is_trained_once_and_tests_the_speakers_it_has_not_heard(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    words = settings(
        material, bucket_url, "data.split.folds=2", "optim.epochs=1", "scale.num_workers=1", "fusion.name=concat"
    )
    output = crossval(words, ray_cluster)
    assert "run-fold0: epoch 1/1" in output
    assert "run-fold1: epoch 1/1" in output
    assert "mean" in output.split("run-folds")[0]
    place = f"{bucket_url}/run-folds"
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{place}/predictions.parquet")))
    assert sorted(table["key"].to_pylist()) == sorted(read_index(material.corpus).key.tolist())
    (scores,) = json.loads(storage.read_bytes(f"{place}/scores.json")).values()
    assert len(scores["folds"]) == 2
    assert scores["uar"]["mean"] == pytest.approx(sum(fold["uar"] for fold in scores["folds"]) / 2)
    assert b"<svg" in storage.read_bytes(f"{place}/confusion.svg")
