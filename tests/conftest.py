"""Fixtures that more than one test module uses: a real S3 server and a real Ray cluster, both on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import settings

from parrot_dist.local.cluster import RayHead, ray_head
from parrot_dist.local.s3 import S3Server, s3_server
from tests.keys import keys_of

# Time belongs to benchmarks: an example that is slow on a busy machine is not wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `make test`, which runs three processes. Two have a Ray cluster each, for the modules that share a run and
    for the others that want a cluster; these take longest, and so come first. Any other module has one process.
    """
    sharing = {item.path for item in items if "finished_run" in fixtures_of(item)}

    def group(item: pytest.Item) -> str:
        wants_ray = item.get_closest_marker("cluster") or "ray_cluster" in fixtures_of(item)
        return item.path.name if not wants_ray else "shared run" if item.path in sharing else "cluster"

    items.sort(key=lambda item: {"shared run": 0, "cluster": 1}.get(group(item), 2))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


def fixtures_of(item: pytest.Item) -> Sequence[str]:
    """The names of the fixtures that a test needs."""
    return getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server for the session; this process and its children use it for every s3:// URL."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket_url(s3: S3Server) -> str:
    """An s3:// prefix that no other test uses."""
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def ray_cluster(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray head for the session with four logical CPUs, whose jobs use the S3 server of the session."""
    fair = {"RAY_worker_niceness": "0"}  # 15 by default, with which other tests would leave them no time
    fewer = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # processes of a run, of which each costs a second
    # The keys in the environment, as pods have them; everything else that the tests run has a file with them.
    with ray_head(tmp_path_factory.mktemp("ray"), s3.env | keys_of(s3) | fair, num_cpus=4) as head:
        yield replace(head, env=head.env | fewer)
