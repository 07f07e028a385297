"""`make test-slurm`: takes minutes, and root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.lab import Lab, missing, slurm_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Slurm cluster of two nodes."""
    lacking = missing()
    if lacking:
        pytest.exit(f"the tests of the Slurm launcher cannot run: {lacking}", returncode=1)
    with slurm_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running
