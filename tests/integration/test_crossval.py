"""Cross-validation on a real Ray cluster: every speaker is tested once, by a run that has not heard it."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from parrot_dist import configuration, storage
from parrot_dist.data.index import read_index
from parrot_dist.local.cluster import RayHead, client_environment
from parrot_dist.training import checkpoint
from parrot_dist.training.model import CONFIG_PART
from parrot_dist.training.task import open_task
from tests.jobs import Material, settings, train_here

pytestmark = pytest.mark.cluster


def test_every_fold_is_trained_once_and_tests_the_speakers_it_has_not_heard(
    material: Material, bucket_url: str, ray_cluster: RayHead
) -> None:
    words = ["data.split.folds=3", "optim.epochs=1", "scale.num_workers=1", "fusion.name=concat"]
    words = settings(material, bucket_url, *words)
    train_here([*words, "name=run-fold0"])
    command = [sys.executable, "-m", "parrot_dist.crossval", *words]
    done = subprocess.run(command, env=client_environment(ray_cluster.env), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run-fold0: {bucket_url}/run-fold0 is complete after 1 epochs; nothing to do" in done.stdout
    assert "run-fold1: epoch 1/1" in done.stdout
    assert "run-fold2: epoch 1/1" in done.stdout
    place = f"{bucket_url}/run-folds"
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{place}/predictions.parquet")))
    assert sorted(table["key"].to_pylist()) == sorted(read_index(material.corpus).key.tolist())
    (scores,) = json.loads(storage.read_bytes(f"{place}/scores.json")).values()
    assert len(scores["folds"]) == 3
    assert scores["uar"]["mean"] == pytest.approx(sum(fold["uar"] for fold in scores["folds"]) / 3)
    assert f"{scores['uar']['mean']:.3f} ± {scores['uar']['std']:.3f}" in done.stdout
    index = read_index(material.corpus)
    speaker = dict(zip(index.key.tolist(), index.speaker.tolist(), strict=True))
    for fold in range(3):
        manifest = checkpoint.best(f"{bucket_url}/run-fold{fold}")
        assert manifest is not None
        config = configuration.loads(checkpoint.read_part(manifest, CONFIG_PART).decode())
        parts = open_task(config).parts
        heard = {speaker[index.key[row]] for row in [*parts.train, *parts.validation]}
        assert not heard & {speaker[index.key[row]] for row in parts.test}
    assert b"<svg" in storage.read_bytes(f"{place}/confusion.svg")
