"""What the model card of a checkpoint says, gathered from its run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.data.audio import SAMPLE_RATE
from parrot_dist.errors import UserError
from parrot_dist.reporting.card import Card, Part, Spoken, render_card
from parrot_dist.reporting.provenance import provenance
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.model import ParrotModel
from parrot_dist.training.task import check_corpus, open_task


def model_card(found: Found, config: Config, model: ParrotModel) -> str:
    """The card of `found`, in Markdown; what its corpus or its evaluation would say is left open without them."""
    manifest = found.manifest
    parts = [
        Part(
            branch,
            **manifest.encoders[branch],
            parameters=sum(parameter.numel() for parameter in encoder.parameters()),
            unfreeze=config.encoders.unfrozen(manifest.last_epoch)[branch],
        )
        for branch, encoder in model.branches()
    ]
    card = Card(
        name=config.name,
        checkpoint=found.url,
        epoch=manifest.epoch,
        step=manifest.step,
        score=manifest.score,
        classes=config.data.classes,
        max_seconds=config.data.max_seconds,
        shards=config.data.shards,
        spoken=_spoken(found, config),
        parts=parts,
        settings={
            f"{section}.{key}": value
            for section in ("fusion", "optim")
            for key, value in asdict(getattr(config, section)).items()
        },
        scores=_scores(found),
        versions=provenance(),
    )
    return render_card(card)


def _spoken(found: Found, config: Config) -> Spoken | None:
    """What the checkpoint was trained on, if the corpus is still there and the same."""
    try:
        task = open_task(config)
        check_corpus(task, found)
    except UserError:
        return None
    train, test, index = task.parts.train, task.parts.test, task.index
    return Spoken(
        len(train),
        len(set(task.speakers(train))),
        len(set(task.speakers(test))),
        task.known_speakers(test),
        float(index.samples[train].sum()) / SAMPLE_RATE / 3600,
        sorted(set(index.corpus[train].tolist())),
        sorted(set(index.language[train].tolist())),
    )


def _scores(found: Found) -> dict[str, Any]:
    """The scores of the checkpoint on the test split, if they were made."""
    data = storage.find_bytes(storage.join(found.evaluation_url("test"), "scores.json"))
    scores: dict[str, Any] = json.loads(data or b"{}")
    return scores
