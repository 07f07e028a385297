"""A run on a real API server with the KubeRay operator, which the tester names: see k8s/README.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest
import yaml

from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.training import checkpoint
from tests.corpus import write_corpus
from tests.k8s.pods import Tree, cluster_of, documents, small_job, templates_of

NEEDED = ("KUBECONFIG", "PARROT_IMAGE", "PARROT_STORE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
PLACES = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
LIMIT_S = 900
pytestmark = pytest.mark.timeout(2 * LIMIT_S)


def kubectl(*words: str, documents: list[Tree] | None = None) -> str:
    """What `kubectl` answers, given `documents` on standard input."""
    text = yaml.safe_dump_all(documents) if documents else None
    done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def apply(documents: list[Tree]) -> None:
    """Create them; a field that the API server does not know is an error."""
    kubectl("create", "--validate=strict", "-f", "-", documents=documents)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace of this test's own, with what k8s/namespace.yaml puts there; it is deleted in the end."""
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        pytest.skip(f"no cluster to try it on: {', '.join(missing)} not set")
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl")
    name = f"parrot-test-{uuid.uuid4().hex[:8]}"
    try:
        apply(moved(documents("namespace"), name))
        yield name
    finally:
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def moved(resources: list[Tree], namespace: str) -> list[Tree]:
    """`resources` in another namespace."""
    for resource in resources:
        resource["metadata"]["name" if resource["kind"] == "Namespace" else "namespace"] = namespace
    return resources


def settings(url: str) -> list[Tree]:
    """k8s/settings.yaml for a small job at `url`, and the Secret, from the tester's own variables."""
    store, job = documents("settings")
    own = {name: os.environ[name] for name in PLACES if os.environ.get(name)}
    secret = {name: os.environ[name] for name in KEYS if os.environ.get(name)}
    store["data"] = own | {"PARROT_SHARDS": f"{url}/shards", "PARROT_OUTPUT": f"{url}/runs"}
    job["data"] = {"job.yaml": small_job(url)}
    metadata = {"name": "parrot-store"}
    return [store, job, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret}]


def ray_job() -> Tree:
    """k8s/rayjob-cpu.yaml with the tester's image, in pods that a small cluster has room for."""
    (job,) = documents("rayjob-cpu")
    for template in templates_of(job).values():
        (container,) = template["spec"]["containers"]
        container["image"] = os.environ["PARROT_IMAGE"]
        container["resources"] = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "3Gi"}}
    job["spec"]["entrypoint"] += " scale.cpus_per_worker=1"
    assert cluster_of(job)["authOptions"] == {"mode": "token"}
    return job


def test_the_operator_runs_the_job_to_its_end(namespace: str) -> None:
    url = f"{os.environ['PARROT_STORE'].rstrip('/')}/{namespace}"
    write_corpus(f"{url}/shards", speakers=8, clips=4)
    write_random_encoders(f"{url}/encoders")
    apply(moved([*settings(url), ray_job()], namespace))
    deadline, status = time.monotonic() + LIMIT_S, {}
    while status.get("jobStatus") not in ("SUCCEEDED", "FAILED", "STOPPED"):
        assert time.monotonic() < deadline, status
        time.sleep(5)
        status = json.loads(kubectl("-n", namespace, "get", "rayjob", "parrot", "-o", "json")).get("status", {})
    assert status["jobStatus"] == "SUCCEEDED", kubectl("-n", namespace, "logs", "job/parrot")
    newest = checkpoint.newest(f"{url}/runs/parrot")
    assert newest
    assert newest.manifest.finished
