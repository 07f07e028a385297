"""A run that several test modules predict from."""

from __future__ import annotations

import pytest

from tests.jobs import Material, settings, train_here, write_material


@pytest.fixture(scope="session")
def local_material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A corpus and two encoders in a folder, which nobody changes."""
    return write_material(str(tmp_path_factory.mktemp("material")))


@pytest.fixture(scope="session")
def local_run(local_material: Material, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one epoch that trained the last block of both encoders, in a folder which nobody changes."""
    return train_here(settings(local_material, str(tmp_path_factory.mktemp("runs")), "optim.epochs=1"))
