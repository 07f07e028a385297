"""Where an encoder's files are: a local path, an object store or the Hugging Face Hub; and what they contain."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from parrot_dist import storage
from parrot_dist.errors import UserError

CHECKPOINT = re.compile(r"(?:^|/)checkpoint-(\d+)\.pth$")
WHOLE = "model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Inert:
    """Stands for any foreign class or function of a pickle, which is never imported; takes all and keeps nothing."""

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def ssam_file(place: str, revision: str | None) -> Path:
    """The checkpoint file at `place`: the file itself, or a folder's model.safetensors, or else the newest epoch of its
    `checkpoints/checkpoint-<epoch>.pth`.

    Raises:
        UserError: there is none.
    """
    if place.endswith((".pth", ".safetensors")):
        return _existing(place, revision)
    if _on_hub(place):
        place = str(snapshot(place, revision, ["checkpoints/checkpoint-*.pth"]))
    else:
        _refuse_revision(place, revision)
        if storage.exists(storage.join(place, WHOLE)):
            return storage.local_copy(storage.join(place, WHOLE))
    epochs = {int(match[1]): name for name in storage.list_files(place) if (match := CHECKPOINT.search(name))}
    if not epochs:
        raise UserError(f"{place}: no checkpoint here; looked for {WHOLE} and checkpoints/checkpoint-<epoch>.pth")
    return storage.local_copy(storage.join(place, epochs[max(epochs)]))


def hub_folder(place: str, revision: str | None) -> Path:
    """The folder with config.json and weights at `place`: a path, an object store or a Hub id.

    Raises:
        UserError: there is no config.json or no weights.
    """
    if _on_hub(place):
        folder = snapshot(place, revision, ["*config.json", "model*.safetensors", "model.safetensors.index.json"])
        if not weight_files(folder):  # older repositories hold pickles only; they are read with weights_only
            folder = snapshot(place, revision, ["*config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"])
    else:
        _refuse_revision(place, revision)
        folder = storage.local_copy(place)
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise UserError(f"{place}: no encoder here; looked for config.json and model.safetensors or pytorch_model.bin")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads from `folder`: safetensors, or else pickles."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def deciding_files(folder: Path) -> list[Path]:
    """The files that decide the embeddings: what the model is, how audio is prepared for it, and its weights."""
    described = [folder / "config.json", folder / "preprocessor_config.json"]
    return [file for file in described if file.is_file()] + weight_files(folder)


def snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """The files of a Hub repository that match `patterns`, downloaded or from the local cache.

    Raises:
        UserError: the Hub has no such repository or revision, or cannot be reached and nothing is cached.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repository}: not a folder here, and not to be had from the Hugging Face Hub ({reason}); check the name "
            "and the revision, or download it once and give the folder"
        ) from error


def commit_of(place: str, found: Path) -> str:
    """The commit on the Hub that the file or folder `found` for `place` is of; empty if it is not from there."""
    if not _on_hub(place):
        return ""
    return next((folder.name for folder in (found, *found.parents) if folder.parent.name == "snapshots"), "")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file, the latter also below its key `model`, as trainers save it.

    Raises:
        UserError: the file is something else, or damaged.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = _without_foreign_code(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as a file of tensors: {str(error).splitlines()[0]}") from error
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{file}: holds no dictionary of tensors, neither at the top nor as `model`")
    return tensors


def misfits(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Why the tensors `found` cannot take the place of `own`: each that is missing, unknown or of another shape."""
    wrong = [f"no {name}" for name in own if name not in found]
    wrong += [f"unknown {name}" for name in found if name not in own]
    return wrong + [
        f"{name} is {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in found and found[name].shape != value.shape
    ]


def _without_foreign_code(file: Path) -> Any:
    """The content of a `.pth` file, with an `Inert` for whatever is no tensor or plain value.

    A trainer saves its arguments and settings beside the weights, in classes that need not be installed here.
    """
    foreign = get_unsafe_globals_in_checkpoint(file) if zipfile.is_zipfile(file) else []
    with safe_globals([(Inert, name) for name in foreign]):
        return torch.load(file, map_location="cpu", weights_only=True)


def digest(files: list[Path]) -> str:
    """SHA-256 over the content of `files` in order, in hexadecimal."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _existing(place: str, revision: str | None) -> Path:
    _refuse_revision(place, revision)
    if not storage.exists(place):
        raise UserError(f"{place}: there is no such file; a .pth or .safetensors checkpoint was looked for")
    return storage.local_copy(place)


def _on_hub(place: str) -> bool:
    return HUB_ID.fullmatch(place) is not None and not Path(place).exists()


def _refuse_revision(place: str, revision: str | None) -> None:
    if revision is not None:
        raise UserError(f"{place}: revision {revision!r} goes with a Hub id only; a file or folder has one state")
