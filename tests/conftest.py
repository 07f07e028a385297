"""Fixtures that more than one test module uses: a real S3 server and a real Ray cluster, both on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

from parrot_dist.local.cluster import RayHead, ray_head
from parrot_dist.local.s3 import S3Server, s3_server

# Time belongs to benchmarks: an example that is slow on a busy machine is not wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `make test`, which runs two processes: one Ray cluster for all tests that want one, one process a module."""
    for item in items:
        wants_ray = item.get_closest_marker("cluster") or "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("cluster" if wants_ray else item.path.name))


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
    env = s3.env | {"RAY_health_check_period_ms": "1000"}  # 3 s by default, five times before a node counts as lost
    with ray_head(tmp_path_factory.mktemp("ray"), env, num_cpus=4) as head:
        yield head
