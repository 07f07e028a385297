"""A cell of a table is a run with frozen encoders, only without its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parrot_dist import configuration
from parrot_dist.local.encoders import write_random_encoders
from parrot_dist.reporting.metrics import score
from parrot_dist.training import checkpoint
from parrot_dist.training.cells import Silent, embed, train_cell
from parrot_dist.training.inference import Place, infer
from parrot_dist.training.model import load_checkpoint
from parrot_dist.training.prefix import from_own_start, open_feeds
from parrot_dist.training.rank import train_rank
from parrot_dist.training.task import open_task
from tests.corpus import CLASSES, write_corpus


def test_a_cell_gives_what_a_run_gives(tmp_path: Path) -> None:
    sources = write_random_encoders(str(tmp_path / "encoders"))
    settings = configuration.load(
        None,
        [
            *("name=run", f"output={tmp_path}", f"data.classes=[{','.join(CLASSES)}]", "data.split.folds=4"),
            f"data.shards={write_corpus(str(tmp_path / 'corpus'), speakers=8, clips=9)}",
            *(f"encoders.{branch}.source={source}" for branch, source in sources.items()),
            *("optim.epochs=3", "optim.batch_size=8", "data.lanes=4", "fusion.reference_rows=16"),
        ],
    )
    embeddings = {
        branch: [embed(settings, getattr(settings.encoders, branch), share, 2) for share in range(2)][-1]
        for branch in ("mamba", "attention")
    }
    outcome = train_cell(settings, embeddings)
    train_rank(settings, Place(), Silent(), lambda record: None)
    _, model, _ = load_checkpoint(checkpoint.locate(settings.run_url))
    task = open_task(settings)
    feeds = open_feeds(task, model, Place(), Silent())
    rows, logits, _ = infer(task, feeds, task.parts.test, Place(), lambda inputs, sizes: model(inputs, None, sizes))
    assert outcome.epochs == 3
    assert torch.equal(
        torch.from_numpy(outcome.scores.confusion),
        torch.from_numpy(score(task.labels[rows], logits.argmax(1), len(CLASSES)).confusion),
    )


@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_part_has_its_turn_from_any_start(count: int) -> None:
    turns = [from_own_start(list(range(count)), f"run-fold{fold}") for fold in range(20)]
    assert all(sorted(turn) == list(range(count)) for turn in turns)
    assert count < 2 or len({turn[0] for turn in turns}) > 1
