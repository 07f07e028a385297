"""A place that is full while a run writes to it ends the run with one message: trying again would not help."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from parrot_dist import storage
from parrot_dist.errors import Unreachable, UserError
from tests.jobs import Material, settings, train_here


@pytest.mark.parametrize("what", ["part-000000.records", "model.safetensors"])
def test_a_full_disk_is_said_once_with_what_to_do(
    what: str, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage._write_aside

    def until_full(target: Path, data: bytes) -> Path:
        if what in target.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return write(target, data)

    monkeypatch.setattr(storage, "_write_aside", until_full)
    with pytest.raises(UserError, match=rf"/{what}: No space left on device; make room there") as refusal:
        train_here(settings(material, str(tmp_path), "checkpoint.every_steps=1", "optim.epochs=1"))
    assert not isinstance(refusal.value, Unreachable)  # which Ray Train would try again
