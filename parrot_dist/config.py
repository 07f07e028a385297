"""The schema of every setting, and the one way from files, words and environment to a checked configuration.

Everything that can be known to be wrong without touching the network is found here, all at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parrot_dist.errors import UserError, nearest
from parrot_dist.fusion import HEADS

PRECISIONS = ("float32", "bf16", "fp16")


@dataclass
class Split:
    """Speaker-independent split: no speaker of one part is heard in another."""

    folds: int = 5  # the paper's protocol: four folds train, one tests
    fold: int = 0  # which one tests
    validation: float = 0.1  # share of the training speakers held out for early stopping and for choosing the best


@dataclass
class Data:
    shards: str = MISSING  # URL of a corpus made by shards.build; PARROT_SHARDS names it too
    classes: list[str] = MISSING  # emotions, in the order of the logits
    split: Split = field(default_factory=Split)
    lanes: int = 16  # parallel readers of an epoch over the whole cluster; fixes the order, so not tied to workers
    window: int = 256  # samples a lane holds and shuffles at a time
    last_batch: str = "keep"  # keep | drop: what happens to an epoch's final, smaller batch
    max_seconds: float = 12.0  # an utterance is cut after this
    max_broken: float = 0.01  # share of an epoch's utterances that may be unreadable before the run fails
    keep_frozen: bool = True  # compute what lies below the unfrozen layers once, and keep it on storage
    cache: str = ""  # URL where that is kept; below `output` unless given
    workers: int = 0  # decoding processes per rank; 0 decodes between steps, right for a laptop


@dataclass
class Branch:
    """One encoder branch."""

    source: str = MISSING  # "ssam:PLACE" or "hf:PLACE"; a place is a folder, a file, s3:// or (hf) a Hub id
    revision: str | None = None  # Hub revision
    unfreeze: str = "none"  # none | all | last:N | comma-separated parameter patterns
    lr: float = 1e-4  # learning rate of its unfrozen part
    readout: str = "released"  # ssam only: released (as published) | frequency (true frequency order)


@dataclass
class Encoders:
    mamba: Branch = field(default_factory=Branch)
    attention: Branch = field(default_factory=Branch)


@dataclass
class Fusion:
    """The head; defaults are the paper's."""

    name: str = "parrot"
    branch: str = "mamba"  # the branch that fcn and cnn listen to
    epsilon: float = 0.05  # entropy of the transport plan
    iterations: int = 50  # Sinkhorn iterations
    dropout: float = 0.3
    cost: str = "euclidean"
    transport_scope: str = "global"  # plan over the global batch; local: over each rank's rows, for comparison
    reference_rows: int = 512  # training rows kept in a checkpoint to transport single utterances against


@dataclass
class Optim:
    batch_size: int = 32  # global: over all workers together
    epochs: int = 50
    lr: float = 1e-3  # of the head
    weight_decay: float = 0.0
    clip_norm: float = 5.0  # gradients are scaled down to this norm; 0 switches it off
    precision: str = "bf16"  # autocast; transport, scan, norms and loss stay in float32
    patience: int = 0  # epochs without a better validation UAR before an early stop; 0 never stops early


@dataclass
class Scale:
    """How the job spreads over a cluster; nothing here changes what is computed."""

    num_workers: int = 2
    use_gpu: bool = False
    cpus_per_worker: int = 1
    placement: str = "PACK"  # PACK | SPREAD
    max_failures: int = 3  # lost workers or nodes ridden out before the run gives up


@dataclass
class Checkpointing:
    every_steps: int = 0  # additionally to every epoch's end; 0: only there
    keep: int = 2  # the newest so many; the best is kept beside them


@dataclass
class Config:
    name: str = MISSING  # a run of the same name in the same output is the same run: it goes on
    output: str = MISSING  # URL below which the run's folder lies; PARROT_OUTPUT names it too
    seed: int = 0
    data: Data = field(default_factory=Data)
    encoders: Encoders = field(default_factory=Encoders)
    fusion: Fusion = field(default_factory=Fusion)
    optim: Optim = field(default_factory=Optim)
    scale: Scale = field(default_factory=Scale)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)

    @property
    def run_url(self) -> str:
        """Where the run's checkpoints are."""
        return f"{self.output.rstrip('/')}/{self.name}"

    @property
    def cache_url(self) -> str:
        """Where activations of frozen layers are kept, for all runs."""
        return self.data.cache or f"{self.output.rstrip('/')}/cache"


# What may differ between a run and its continuation; everything else would make it another run.
FREE_TO_CHANGE = (
    "output",
    "data.workers",
    "data.cache",
    "data.max_broken",
    "scale",
    "checkpoint",
    "optim.epochs",
    "optim.patience",
)


def load(file: str | None, words: list[str]) -> Config:
    """The configuration of `file` (YAML), overridden by `key=value` words, completed from the environment.

    Raises:
        UserError: lists every unknown key with its nearest right name, every wrong type and every contradiction.
    """
    layers = [] if file is None else [_read_yaml(file)]
    layers += [_parse_word(word) for word in words]
    environment = {"data.shards": "PARROT_SHARDS", "output": "PARROT_OUTPUT"}
    defaults = OmegaConf.create({})
    for key, variable in environment.items():
        if variable in os.environ:
            OmegaConf.update(defaults, key, os.environ[variable])
    return _absolute(_resolve([defaults, *layers]))


def loads(text: str) -> Config:
    """The configuration that `dumps` wrote."""
    return _resolve([OmegaConf.create(text)])


def dumps(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which `new` is not a continuation of `old`, as `key: old -> new`."""
    before, after = _leaves(_plain(old)), _leaves(_plain(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)
    ]


def _absolute(config: Config) -> Config:
    """`config` with its local places made absolute: Ray runs drivers and workers in folders of their own."""
    data = replace(
        config.data, shards=_place(config.data.shards), cache=config.data.cache and _place(config.data.cache)
    )
    branches = {
        name: replace(branch, source=_source(branch.source))
        for name, branch in (("mamba", config.encoders.mamba), ("attention", config.encoders.attention))
    }
    return replace(config, output=_place(config.output), data=data, encoders=Encoders(**branches))


def _place(url: str) -> str:
    return url if ":" in url else str(Path(url).expanduser().absolute())


def _source(source: str) -> str:
    family, colon, place = source.partition(":")
    # A name that is nothing here may be a Hub id.
    return f"{family}{colon}{_place(place)}" if place and Path(place).expanduser().exists() else source


def _read_yaml(file: str) -> Any:
    if not Path(file).is_file():
        raise UserError(f"{file}: there is no such configuration file")
    try:
        content = OmegaConf.load(file)
    except Exception as error:
        raise UserError(f"{file}: not readable as YAML: {error}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{file}: holds a list; settings are written as key: value")
    return content


def _parse_word(word: str) -> Any:
    if "=" not in word:
        raise UserError(f"{word}: settings are given as key=value")
    try:
        return OmegaConf.from_dotlist([word])
    except Exception as error:
        raise UserError(f"{word}: {error}") from error


def _resolve(layers: list[Any]) -> Config:
    """Merge untyped layers, then lay them leaf by leaf over the schema, so that every fault is found."""
    try:
        merged = OmegaConf.merge(*layers)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"the configuration cannot be used: {str(error).splitlines()[0]}") from error
    schema = OmegaConf.structured(Config)
    known = schema_keys()
    faults = []
    for key, value in _leaves(_unresolved(merged)).items():
        if key not in known:
            near = nearest(key, known)
            faults.append(f"{key}: there is no such setting" + (f"; did you mean {near}?" if near else ""))
            continue
        try:
            OmegaConf.update(schema, key, value)
        except OmegaConfBaseException as error:
            faults.append(f"{key}: {str(error).splitlines()[0]}")
    try:
        missing = sorted(OmegaConf.missing_keys(schema))
        named = [fault.partition(":")[0] for fault in faults]
        faults += [f"{key}: must be given{_ENVIRONMENT_HINT.get(key, '')}" for key in missing if key not in named]
        if not missing:  # what is mistyped has its default here, so that the rest is checked all the same
            config = cast(Config, OmegaConf.to_object(schema))
            faults += contradictions(config)
    except OmegaConfBaseException as error:
        faults.append(str(error).splitlines()[0])
    if faults:
        raise UserError("the configuration cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    return config


_ENVIRONMENT_HINT = {"data.shards": " (or PARROT_SHARDS)", "output": " (or PARROT_OUTPUT)"}


def contradictions(config: Config) -> list[str]:
    """Every setting, or pair of settings, that cannot work, as `key: what is wrong`."""
    data, optim, scale, fusion = config.data, config.optim, config.scale, config.fusion
    rules = [
        (fusion.name in HEADS, "fusion.name", f"must be one of {', '.join(HEADS)}"),
        (fusion.branch in ("mamba", "attention"), "fusion.branch", "must be mamba or attention"),
        (fusion.transport_scope in ("global", "local"), "fusion.transport_scope", "must be global or local"),
        (fusion.cost in ("euclidean", "cosine", "squared"), "fusion.cost", "must be euclidean, cosine or squared"),
        (fusion.epsilon > 0, "fusion.epsilon", "must be above 0"),
        (fusion.iterations > 0, "fusion.iterations", "must be above 0"),
        (0 <= fusion.dropout < 1, "fusion.dropout", "must be in [0, 1)"),
        (fusion.reference_rows > 0, "fusion.reference_rows", "must be above 0"),
        (len(data.classes) > 1, "data.classes", "must name two emotions or more"),
        (len(set(data.classes)) == len(data.classes), "data.classes", "names an emotion twice"),
        (data.split.folds > 1, "data.split.folds", "must be 2 or more"),
        (0 <= data.split.fold < data.split.folds, "data.split.fold", "must be below data.split.folds"),
        (0 < data.split.validation < 1, "data.split.validation", "must be between 0 and 1"),
        (data.last_batch in ("keep", "drop"), "data.last_batch", "must be keep or drop"),
        (data.lanes > 0, "data.lanes", "must be above 0"),
        (data.window > 0, "data.window", "must be above 0"),
        (data.max_seconds > 0, "data.max_seconds", "must be above 0"),
        (0 <= data.max_broken < 1, "data.max_broken", "must be in [0, 1)"),
        (data.workers >= 0, "data.workers", "must be 0 or more"),
        (config.seed >= 0, "seed", "must be 0 or more"),
        (config.encoders.mamba.lr > 0, "encoders.mamba.lr", "must be above 0"),
        (config.encoders.attention.lr > 0, "encoders.attention.lr", "must be above 0"),
        (optim.weight_decay >= 0, "optim.weight_decay", "must be 0 or more"),
        (optim.epochs > 0, "optim.epochs", "must be above 0"),
        (optim.lr > 0, "optim.lr", "must be above 0"),
        (optim.patience >= 0, "optim.patience", "must be 0 or more"),
        (optim.precision in PRECISIONS, "optim.precision", f"must be one of {', '.join(PRECISIONS)}"),
        (
            optim.precision != "fp16" or scale.use_gpu,
            "optim.precision",
            "fp16 needs scale.use_gpu=true; use bf16 on a CPU",
        ),
        (
            data.lanes > 0 and optim.batch_size > 0 and optim.batch_size % data.lanes == 0,
            "optim.batch_size",
            f"must be a multiple of data.lanes ({data.lanes}): every lane gives equally many rows",
        ),
        (
            0 < scale.num_workers <= data.lanes,
            "scale.num_workers",
            f"must be between 1 and data.lanes ({data.lanes}): a worker reads at least one lane",
        ),
        (scale.placement in ("PACK", "SPREAD"), "scale.placement", "must be PACK or SPREAD"),
        (scale.cpus_per_worker > 0, "scale.cpus_per_worker", "must be above 0"),
        (scale.max_failures >= 0, "scale.max_failures", "must be 0 or more"),
        (config.checkpoint.keep > 0, "checkpoint.keep", "must be above 0"),
        (config.checkpoint.every_steps >= 0, "checkpoint.every_steps", "must be 0 or more"),
        ("/" not in config.name and config.name.strip() != "", "name", "must be a plain name without /"),
    ]
    return [f"{key}: {what}" for holds, key, what in rules if not holds]


def schema_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """The dotted name of every setting, in the order of the schema."""
    keys = []
    for item in fields(schema):
        factory = item.default_factory
        if isinstance(factory, type) and is_dataclass(factory):
            keys += schema_keys(factory, f"{prefix}{item.name}.")
        else:
            keys.append(f"{prefix}{item.name}")
    return keys


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _unresolved(tree: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))


def _plain(config: Config) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), resolve=True))
