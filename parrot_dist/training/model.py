"""The whole network of a run: two encoder branches and the head over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from parrot_dist import configuration
from parrot_dist.config import Config, Encoders
from parrot_dist.encoders import Activation, Embedder, Encoder, load_encoder
from parrot_dist.encoders.weights import misfits
from parrot_dist.errors import UserError
from parrot_dist.fusion import HEADS, Head, HeadSettings, Reference, build_head
from parrot_dist.training import checkpoint
from parrot_dist.training.checkpoint import Found
from parrot_dist.training.micro_batch import embed_in_parts

MODEL_PART, REFERENCE_PART, CONFIG_PART = "model.safetensors", "reference.safetensors", "config.yaml"

Inputs = dict[str, list[Tensor | Activation]]


class ParrotModel(nn.Module):
    """Waveforms to logits. A head that listens to one branch has only that encoder."""

    def __init__(self, encoders: Mapping[str, Embedder], head: Head, micro_batch: int = 0) -> None:
        """`micro_batch`: rows that are embedded at a time where an encoder is trained, see `embed_in_parts`."""
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.head = head
        for encoder in encoders.values():
            encoder.keeps_frames = head.over_frames
        self.micro_batch = micro_batch

    @classmethod
    def from_pretrained(cls, url: str) -> ParrotModel:
        """The network that `python -m parrot_dist.export` wrote to the folder or URL, in eval mode, on the CPU.

        Raises:
            UserError: there is none, or it is damaged.
        """
        from parrot_dist.training.export import read_export  # which builds on this module

        return read_export(url)[1]

    def forward(self, inputs: Inputs, keys: Tensor | None = None, sizes: list[int] | None = None) -> Tensor:
        """Logits (b, C) of this rank's rows of a global batch, see `Head.forward`.

        Args:
            inputs: branch -> one waveform (samples,) at 16 kHz, or one activation, per row; none on a rank that the
                batch does not reach.
            keys: (b,) int64, what each row's dropout is drawn from; needed in training.
            sizes: the number of rows of every rank.
        """
        logits: Tensor = self.head(*self.embed(inputs), keys, sizes)
        return logits

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The embeddings (b, Dm) and (b, Da) of the two branches, or the frames where the head takes these; of no
        width for a branch that is not there.
        """
        return self._embed_branch("mamba", inputs), self._embed_branch("attention", inputs)

    def _embed_branch(self, branch: str, inputs: Inputs) -> Tensor:
        device = next(self.parameters()).device
        if branch not in self.encoders:
            return torch.empty(len(next(iter(inputs.values()))), 0, device=device)
        # A rank without rows still runs, and drops, one of silence: DDP waits for a gradient from every rank.
        embedder = self.encoders[branch]
        assert isinstance(embedder, Embedder)
        embedding = embed_in_parts(embedder, inputs[branch] or self.silence(branch), self.micro_batch)
        return embedding[: len(inputs[branch])]

    def silence(self, branch: str) -> list[Tensor | Activation]:
        """One input of `branch` that stands for nothing."""
        embedder = self.encoders[branch]
        assert isinstance(embedder, Embedder)
        return [embedder.silence(next(self.parameters()).device)]

    def branches(self) -> Iterator[tuple[str, Encoder]]:
        """The encoders that are there, by branch; not those whose embeddings were computed elsewhere."""
        for branch, encoder in self.encoders.items():
            if isinstance(encoder, Encoder):
                yield branch, encoder

    def unfreeze(self, what: Mapping[str, str]) -> None:
        """Say for each branch which of its parameters are trained, see `Encoder.unfreeze`."""
        for branch, encoder in self.branches():
            encoder.unfreeze(what[branch])

    def trained(self) -> dict[str, Tensor]:
        """Name -> parameter of all that training changes: the head and what is unfrozen."""
        return {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}


def build_model(config: Config) -> ParrotModel:
    """The network before training: encoders as published, the head's weights drawn from `config.seed`.

    Raises:
        UserError: an encoder's source holds no checkpoint of its kind, or its `unfreeze` names nothing.
    """
    encoders = {}
    for branch in used_branches(config):
        settings = getattr(config.encoders, branch)
        try:
            encoder = load_encoder(settings.source, readout=settings.readout, revision=settings.revision)
            encoder.unfreeze(settings.unfreeze)
            encoder.recompute = settings.recompute
        except UserError as error:
            raise type(error)(f"encoders.{branch}: {error}") from error
        encoders[branch] = encoder
    torch.manual_seed(config.seed)
    dims = {branch: encoder.dim for branch, encoder in encoders.items()}
    return ParrotModel(encoders, build_configured_head(config, dims), config.optim.micro_batch)


def pinned(config: Config, found: Found | None) -> Config:
    """`config` with the commits on the Hub that the encoders of `found` are of: the Hub may hold others by now."""
    branches = []
    for name, branch in config.encoders.named():
        recorded = found.manifest.encoders.get(name, {}) if found else {}
        same = recorded.get("source") == branch.source
        branches.append(replace(branch, revision=(same and recorded.get("revision")) or branch.revision))
    return replace(config, encoders=Encoders(*branches))


def used_branches(config: Config) -> tuple[str, ...]:
    """The branches that the configured head listens to."""
    return (config.fusion.branch,) if HEADS[config.fusion.name].single_branch else ("mamba", "attention")


def build_configured_head(config: Config, dims: dict[str, int]) -> Head:
    """The head that `config.fusion` names, on embeddings of these widths by branch; draws its weights."""
    settings = {field.name: getattr(config.fusion, field.name) for field in fields(HeadSettings)}
    sizes = dims.get("mamba", 0), dims.get("attention", 0), len(config.data.classes)
    return build_head(config.fusion.name, *sizes, **settings)


def dump_trained(model: ParrotModel) -> bytes:
    """The trained parameters as safetensors."""
    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in model.trained().items()})


def load_trained(model: ParrotModel, data: bytes) -> None:
    """Put back the trained parameters that `data`, safetensors, holds.

    Raises:
        UserError: the parameters are not those of this model.
    """
    tensors, own = load_tensors(data), model.trained()
    if wrong := misfits(tensors, own):
        raise UserError(f"the checkpoint's parameters are not those of the configured model: {'; '.join(wrong[:5])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def load_checkpoint(found: Found) -> tuple[Config, ParrotModel, Reference | None]:
    """The configuration, the network in eval mode, and the reference rows of a checkpoint.

    Raises:
        UserError: a part is damaged, or a base encoder is no longer the one that was trained on.
    """
    config = configuration.loads(checkpoint.read_part(found, CONFIG_PART).decode())
    model = build_model(pinned(config, found))
    check_encoders(model, found)
    model.unfreeze(config.encoders.unfrozen(found.manifest.last_epoch))
    load_trained(model, checkpoint.read_part(found, MODEL_PART))
    reference = None
    if REFERENCE_PART in found.manifest.files:
        reference = Reference.from_tensors(load_tensors(checkpoint.read_part(found, REFERENCE_PART)))
    return config, model.eval(), reference


def lacks_reference(found: Found, model: ParrotModel) -> bool:
    """Whether a checkpoint is without the reference rows that its head needs: its run was killed in its end."""
    return model.head.needs_reference and REFERENCE_PART not in found.manifest.files


def require_reference(found: Found, model: ParrotModel) -> None:
    """Check that a checkpoint can predict utterances on their own.

    Raises:
        UserError: its head transports, and it has no rows to transport to.
    """
    if lacks_reference(found, model):
        raise UserError(
            f"{found.url}: without reference rows, since its run was killed before it had added them; let the run go "
            "on, or take another checkpoint"
        )


def check_encoders(model: ParrotModel, found: Found) -> None:
    """Compare the base encoders with those a checkpoint was trained on.

    Raises:
        UserError: a source now holds other weights.
    """
    for branch, encoder in model.branches():
        recorded = found.manifest.encoders[branch]
        if encoder.digest != recorded["digest"]:
            raise UserError(
                f"encoders.{branch}.source: {encoder.spec} holds other weights than those that {found.url} "
                f"was trained on (SHA-256 {encoder.digest[:12]}, was {recorded['digest'][:12]})"
            )


def describe_encoders(model: ParrotModel) -> dict[str, dict[str, str]]:
    """Branch -> source, digest and commit on the Hub, for a manifest."""
    return {
        branch: {"source": encoder.spec, "digest": encoder.digest, "revision": encoder.revision}
        for branch, encoder in model.branches()
    }
