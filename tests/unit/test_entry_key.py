"""What names a kept activation: a change of anything that it depends on is another entry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from parrot_dist.training.prefix import entry_key


def key(**changes: Any) -> str:
    facts = {"digest": "w", "prefix": "2 blocks", "precision": "bf16", "max_seconds": 12.0, "index": "i"} | changes
    config = SimpleNamespace(
        optim=SimpleNamespace(precision=facts["precision"]), data=SimpleNamespace(max_seconds=facts["max_seconds"])
    )
    task: Any = SimpleNamespace(config=config, index=SimpleNamespace(digest=facts["index"]))
    encoder: Any = SimpleNamespace(digest=facts["digest"], prefix_name=facts["prefix"])
    return entry_key(task, encoder)


@pytest.mark.parametrize(
    "change",
    [{"digest": "v"}, {"prefix": "1 blocks"}, {"precision": "float32"}, {"max_seconds": 3.0}, {"index": "j"}],
    ids=lambda change: next(iter(change)),
)
def test_weights_boundary_precision_length_and_shards_each_make_another_entry(change: dict[str, Any]) -> None:
    assert key() == key()
    assert key(**change) != key()
