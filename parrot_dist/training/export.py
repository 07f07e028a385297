"""A checkpoint as a folder that stands alone: without the run, the corpus and the encoders that it was made from.

config.json              what the folder holds, with sizes and SHA-256; written last
head.safetensors         the head
reference.safetensors    the rows that single utterances are transported to, where the head transports
mamba/, attention/       the encoders as they are after training, each what its family's loader reads
README.md                the model card
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors

from parrot_dist import configuration, storage
from parrot_dist.config import Config, Encoders
from parrot_dist.errors import UserError
from parrot_dist.fusion import Reference
from parrot_dist.reporting.provenance import provenance
from parrot_dist.training import checkpoint
from parrot_dist.training.card import model_card
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.model import (
    REFERENCE_PART,
    ParrotModel,
    build_model,
    dump_trained,
    load_checkpoint,
    load_trained,
    require_reference,
)

CONFIG, HEAD, CARD = "config.json", "head.safetensors", "README.md"
FORMAT = 1


def is_export(url: str) -> bool:
    """Whether the folder at `url` is an export, whole or not."""
    return any(storage.exists(storage.join(url, name)) for name in (CONFIG, HEAD))


def write_export(url: str, out: str) -> Found:
    """Write the checkpoint, or the best one of the run, at `url` as a folder to `out`, and return the checkpoint.

    Raises:
        UserError: there is no checkpoint, it cannot predict utterances on their own, or `out` holds something already.
    """
    if storage.list_files(out):
        raise UserError(f"{out}: holds something already; an export goes to an empty place")
    found = checkpoint.locate(url)
    config, model, reference = load_checkpoint(found)
    require_reference(found, model)
    card = model_card(found, config, model)
    files = _model_files(model)
    if reference is not None:
        files[REFERENCE_PART] = checkpoint.read_part(found, REFERENCE_PART)
    for name, data in (files | {CARD: card.encode()}).items():
        storage.write_bytes(storage.join(out, name), data)
    described = {
        "format": FORMAT,
        "configuration": asdict(_alone(config, "")),
        "checkpoint": found.url,
        "encoders": found.manifest.encoders,
        "versions": provenance(),
        "files": {name: {"size": len(data), "sha256": sha256(data).hexdigest()} for name, data in files.items()},
    }
    storage.write_bytes(storage.join(out, CONFIG), json.dumps(described, indent=1).encode())
    return found


def read_export(url: str) -> tuple[Config, ParrotModel, Reference | None]:
    """The configuration, the network in eval mode on the CPU, and the reference rows of the export at `url`.

    Raises:
        UserError: it is no export, one of its files is missing or damaged, or it needs a plugin that is not installed.
    """
    folder = storage.local_copy(url)
    described = _read_description(folder / CONFIG, f"{url}: {CONFIG}")
    for name, facts in described["files"].items():
        _check(folder / name, facts, f"{url}: {name}")
    config = _alone(configuration.loads(json.dumps(described["configuration"])), f"{folder.absolute()}/")
    model = build_model(config)
    load_trained(model, (folder / HEAD).read_bytes())
    reference = None
    if REFERENCE_PART in described["files"]:
        reference = Reference.from_tensors(load_tensors((folder / REFERENCE_PART).read_bytes()))
    return config, model.eval(), reference


def _model_files(model: ParrotModel) -> dict[str, bytes]:
    """Name -> content of the network's files."""
    files: dict[str, bytes] = {}
    for branch, encoder in model.branches():
        files |= {f"{branch}/{name}": data for name, data in encoder.files().items()}
        encoder.unfreeze("none")  # what was trained of it is in its files: the head alone is left as trained
    return files | {HEAD: dump_trained(model)}


def _alone(config: Config, root: str) -> Config:
    """`config` with both encoders frozen, and where an export at `root`, "" or ending in a slash, holds them."""
    branches = [
        replace(
            branch,
            source=f"{branch.source.partition(':')[0]}:{root}{name}",
            revision=None,
            unfreeze="none",
            unfreeze_at_epoch=0,
        )
        for name, branch in config.encoders.named()
    ]
    return replace(config, encoders=Encoders(*branches))


def _read_description(file: Path, what: str) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads(file.read_bytes())
        if described["format"] != FORMAT:
            raise UserError(f"{what} is of format {described['format']}, this version reads {FORMAT}; use another one")
        if {"configuration", "files"} <= described.keys() and HEAD in described["files"]:
            return described
    except FileNotFoundError as error:
        raise UserError(f"{what} is missing; an export has one, see python -m parrot_dist.export") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{what} is not that of an export, or damaged ({type(error).__name__}: {error})") from error
    raise UserError(f"{what} is not that of an export, or damaged")


def _check(file: Path, facts: dict[str, Any], what: str) -> None:
    if not file.is_file():
        raise UserError(f"{what} is missing; copy the export again")
    if file.stat().st_size != facts["size"]:
        raise UserError(f"{what} has {file.stat().st_size:,} bytes and not {facts['size']:,}; copy the export again")
    with file.open("rb") as stream:
        if file_digest(stream, "sha256").hexdigest() != facts["sha256"]:
            raise UserError(f"{what} is damaged: its content is not what was exported; copy the export again")
