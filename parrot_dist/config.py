"""The schema of every setting, and the one way from files, words and environment to a checked configuration.

Everything that can be known to be wrong without touching the network is found here, all at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parrot_dist.errors import UserError, nearest
from parrot_dist.fusion import HEADS
from parrot_dist.fusion.sinkhorn import COSTS, PLAN_GRADIENTS
from parrot_dist.schema import sections, setting

PRECISIONS = ("float32", "bf16", "fp16")


@dataclass
class Split:
    """Which utterances train, validate and test."""

    by: str = setting(
        "speakers",
        "what makes the folds: speakers dealt to them, the corpus's own folds or parts, or, where nobody knows who "
        "speaks, utterances",
        choices=("speakers", "corpus", "utterances"),
    )
    folds: int = setting(5, "folds that the speakers are dealt to; the paper's five: four train, one tests", least=2)
    fold: int = setting(0, "the fold that tests, counted from 0", least=0)
    validation: float = setting(
        0.1,
        "share of the training speakers held out for choosing the best checkpoint and for early stopping",
        above=0,
        below=1,
    )


@dataclass
class Augment:
    """Random changes of the waveforms, in training only; with any of them on, `data.keep_frozen` has no effect."""

    noise: float = setting(0.0, "largest level of white noise, as a share of the utterance's own", least=0)
    gain_db: float = setting(0.0, "largest change of the level in dB, up or down", least=0)
    speed: float = setting(0.0, "largest change of the speed and pitch, as a share of it, up or down", least=0, below=1)

    @property
    def on(self) -> bool:
        """Whether any waveform is changed."""
        return max(self.noise, self.gain_db, self.speed) > 0


@dataclass
class Data:
    """The corpus, and its way to the workers."""

    shards: str = setting(MISSING, "URL of a corpus made by shards.build; PARROT_SHARDS names it too")
    classes: list[str] = setting(MISSING, "emotions, in the order of the logits")  # noqa: RUF009  it is a field
    emotions: dict[str, str | None] = setting(  # noqa: RUF009  it is a field
        {}, "class for each label that the corpus names otherwise; a label mapped to nothing is left out"
    )
    split: Split = field(default_factory=Split)
    # Fixes the order of an epoch, and so is not tied to the number of workers.
    lanes: int = setting(
        16, "parallel readers of an epoch over the whole cluster, at least as many as workers; fixes the order", above=0
    )
    window: int = setting(256, "utterances that a lane holds and shuffles at a time; fewer beyond 16 MiB", above=0)
    bucketing: bool = setting(False, "make the batches of training of utterances of about one length")
    sampling: str = setting(
        "natural",
        "what an epoch of training holds: every utterance once, or equally many of every class",
        choices=("natural", "balanced"),
    )
    augment: Augment = field(default_factory=Augment)
    last_batch: str = setting("keep", "what happens to the last, smaller batch of an epoch", choices=("keep", "drop"))
    max_seconds: float = setting(12.0, "seconds after which an utterance is cut", above=0)
    max_broken: float = setting(
        0.01, "share of an epoch's utterances that may be unreadable before the run fails", least=0, below=1
    )
    keep_frozen: bool = setting(True, "compute what lies below the unfrozen layers once, and keep it on storage")
    cache: str = setting("", "URL where that is kept; empty: `cache` below `output`")
    node_cache_gb: float = setting(
        0.0, "disk space of each node, in GB, in which its workers share what they read of the shards; 0: none", least=0
    )
    node_cache: str = setting("", "folder of each node for that; empty: one below the temporary directory")
    workers: int = setting(0, "decoding processes of each worker; 0 decodes between steps, right for a laptop", least=0)


@dataclass
class Branch:
    """One of the two speech encoders."""

    source: str = setting(
        MISSING, "`ssam:PLACE` or `hf:PLACE`; a place is a folder, a file, an s3:// URL or (hf) a Hub id"
    )
    revision: str | None = setting(None, "revision on the Hub, for a Hub id")
    unfreeze: str = setting("none", "what is trained of it: `none`, `all`, `last:N` or patterns of parameter names")
    lr: float = setting(1e-4, "learning rate of what is unfrozen", above=0)
    lr_decay: float = setting(1.0, "factor on the learning rate of each block below the last", above=0)
    recompute: bool = setting(False, "compute trained blocks again in the backward pass: less memory, more time")
    readout: str = setting(
        "released",
        "order of the frequencies in the embedding, ssam only: as in the released code, or true",
        choices=("released", "frequency"),
    )


@dataclass
class Encoders:
    """The two branches."""

    mamba: Branch = field(default_factory=Branch)
    attention: Branch = field(default_factory=Branch)


@dataclass
class Fusion:
    """The head; the defaults are the paper's."""

    name: str = setting("parrot", "the head; fcn and cnn hear one encoder only", choices=tuple(HEADS))
    branch: str = setting("mamba", "the encoder that fcn and cnn hear", choices=("mamba", "attention"))
    epsilon: float = setting(0.05, "entropy of the transport plan", above=0)
    iterations: int = setting(50, "Sinkhorn iterations", above=0)
    dropout: float = setting(0.3, "share of the head's hidden units that a step leaves out", least=0, below=1)
    cost: str = setting("euclidean", "cost of the transport between two embeddings", choices=tuple(COSTS))
    plan_gradient: str = setting(
        "none",
        "gradient through the plan: none (the paper's), that of its iterations, or that of a converged plan",
        choices=PLAN_GRADIENTS,
    )
    over: str = setting(
        "batch",
        "transport between the utterances of a batch (the paper's), or between the frames of each utterance",
        choices=("batch", "frames"),
    )
    transport_scope: str = setting(
        "global",
        "what the plan spans: the global batch, or each worker's part of it, for comparison",
        choices=("global", "local"),
    )
    reference_rows: int = setting(
        512, "training utterances kept in a checkpoint to transport single utterances against", above=0
    )


@dataclass
class Optim:
    """The training."""

    batch_size: int = setting(32, "utterances of a step, over all workers together; a multiple of data.lanes", above=0)
    micro_batch: int = setting(
        0,
        "utterances that a worker holds in its unfrozen encoders at a time, to save memory; no other effect; 0: all",
        least=0,
    )
    epochs: int = setting(50, "passes over the training utterances", above=0)
    lr: float = setting(1e-3, "learning rate of the head (Adam)", above=0)
    weight_decay: float = setting(0.0, "L2 penalty of Adam", least=0)
    clip_norm: float = setting(5.0, "norm to which larger gradients are scaled down; 0 switches it off", least=0)
    non_finite: str = setting(
        "stop",
        "what a loss or gradient that is not finite does: end the run, or leave the step out, up to a tenth of an "
        "epoch's steps and at least one",
        choices=("stop", "skip"),
    )
    precision: str = setting(
        "bf16", "of autocast; transport, scan, norms and loss stay in float32; fp16 needs a GPU", choices=PRECISIONS
    )
    patience: int = setting(
        0, "epochs without a better validation UAR before an early stop; 0 never stops early", least=0
    )


@dataclass
class Scale:
    """How the job spreads over a cluster; nothing here changes what is computed."""

    num_workers: int = setting(2, "processes that train, at most data.lanes; [1, 2] also sets scale.min_workers")
    min_workers: int = setting(
        0, "processes to go on with when nodes are lost, until there are new ones; 0: all of num_workers", least=0
    )
    resize_seconds: float = setting(
        60.0,
        "seconds between looks for room for more workers; taking them in repeats what came after the newest checkpoint",
        above=0,
    )
    use_gpu: bool = setting(False, "one GPU for each worker")
    cpus_per_worker: int = setting(1, "CPU cores of each worker", above=0)
    placement: str = setting("PACK", "workers on as few nodes as possible, or on many", choices=("PACK", "SPREAD"))
    max_failures: int = setting(3, "lost workers or nodes ridden out before the run gives up", least=0)
    hang_seconds: float = setting(
        1800.0,
        "seconds after which a worker that does not get on in training counts as lost; longer than any step, reading "
        "its data or saving included; 0: never",
        least=0,
    )


@dataclass
class Checkpointing:
    """What is kept of a run."""

    every_steps: int = setting(
        0, "steps between checkpoints, beside the one at each epoch's end; 0: only that", least=0
    )
    keep: int = setting(2, "newest checkpoints that are kept; the best is kept beside them", above=0)


@dataclass
class Config:
    """The run."""

    name: str = setting(MISSING, "a run of the same name in the same output is the same run: it goes on")
    output: str = setting(MISSING, "URL below which the run's folder lies; PARROT_OUTPUT names it too")
    seed: int = setting(0, "of initial weights, split, order and dropout", least=0)
    tracking: list[str] = setting(  # noqa: RUF009  it is a field
        [], "where curves go besides TensorBoard; each is an extra of this package", choices=("mlflow", "wandb")
    )
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
    "tracking",
    "data.workers",
    "data.cache",
    "data.node_cache",
    "data.node_cache_gb",
    "data.max_broken",
    "scale",
    "checkpoint",
    "optim.epochs",
    "optim.micro_batch",
    "optim.patience",
)


def load(file: str | None, words: list[str]) -> Config:
    """The configuration of `file` (YAML), or of the one that PARROT_CONFIG names, overridden by `key=value` words,
    completed from the environment.

    Raises:
        UserError: lists every unknown key with its nearest right name, every wrong type and every contradiction.
    """
    file = file or os.environ.get("PARROT_CONFIG")
    layers = [read_yaml(file)] if file else []
    return complete([*layers, *map(parse_word, words)])


def complete(layers: list[DictConfig]) -> Config:
    """The configuration of trees of settings, each overriding those before it, completed from the environment.

    Raises:
        UserError: as `load`.
    """
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


def flat(config: Config) -> dict[str, Any]:
    """The value of every setting by its dotted name."""
    return _leaves(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), resolve=True)))


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which `new` is not a continuation of `old`, as `key: old -> new`."""
    before, after = flat(old), flat(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)
    ]


def _absolute(config: Config) -> Config:
    """`config` with its local places made absolute: Ray runs drivers and workers in folders of their own."""
    data = config.data
    data = replace(
        data,
        shards=_place(data.shards),
        cache=data.cache and _place(data.cache),
        node_cache=data.node_cache and _place(data.node_cache),
    )
    branches = {
        name: replace(branch, source=absolute_source(branch.source))
        for name, branch in (("mamba", config.encoders.mamba), ("attention", config.encoders.attention))
    }
    return replace(config, output=_place(config.output), data=data, encoders=Encoders(**branches))


def _place(url: str) -> str:
    return url if ":" in url else str(Path(url).expanduser().absolute())


def absolute_source(source: str) -> str:
    """An encoder's source with its place made absolute, if it is a local one."""
    family, colon, place = source.partition(":")
    # A name that is nothing here may be a Hub id.
    return f"{family}{colon}{_place(place)}" if place and Path(place).expanduser().exists() else source


def read_yaml(file: str) -> DictConfig:
    """The settings in a file, or an object on storage, as they stand.

    Raises:
        UserError: it is not there, or not YAML with settings in it.
    """
    if "://" not in file and not Path(file).is_file():
        raise UserError(f"{file}: there is no such configuration file")
    try:
        content = OmegaConf.load(file) if "://" not in file else OmegaConf.create(_fetch(file))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: not readable as YAML: {error}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{file}: holds a list; settings are written as key: value")
    return content


def _fetch(url: str) -> str:
    from parrot_dist import storage  # its libraries take half a second, which a mistyped setting need not wait for

    return storage.read_bytes(url).decode()


def parse_word(word: str) -> DictConfig:
    """The setting in a `key=value` word.

    Raises:
        UserError: it is not of that form.
    """
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
    for key, value in _spelt_out(_leaves(_unresolved(merged))).items():
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


def _spelt_out(leaves: dict[str, Any]) -> dict[str, Any]:
    """`leaves` with a range of workers as the two settings that it stands for."""
    workers = leaves.get("scale.num_workers")
    if not isinstance(workers, list) or len(workers) != 2:
        return leaves
    return leaves | {"scale.min_workers": workers[0], "scale.num_workers": workers[1]}


_ENVIRONMENT_HINT = {"data.shards": " (or PARROT_SHARDS)", "output": " (or PARROT_OUTPUT)"}


def contradictions(config: Config) -> list[str]:
    """Every setting, or pair of settings, that cannot work, as `key: what is wrong`."""
    data, optim, scale = config.data, config.optim, config.scale
    values = flat(config)
    bounds = [
        (item.about.holds(values[item.key]), item.key, f"must be {item.about.allowed}")
        for section in sections(Config)
        for item in section.settings
    ]
    rules = [
        (len(data.classes) > 1, "data.classes", "must name two emotions or more"),
        (len(set(data.classes)) == len(data.classes), "data.classes", "names an emotion twice"),
        (
            {*data.emotions.values()} <= {*data.classes, None},
            "data.emotions",
            "must map every label to one of data.classes, or to nothing",
        ),
        (
            data.split.by == "corpus" or data.split.fold < data.split.folds,
            "data.split.fold",
            "must be below data.split.folds",
        ),
        (
            optim.precision != "fp16" or scale.use_gpu,
            "optim.precision",
            "fp16 needs scale.use_gpu=true; use bf16 on a CPU",
        ),
        (
            data.lanes <= 0 or optim.batch_size % data.lanes == 0,
            "optim.batch_size",
            f"must be a multiple of data.lanes ({data.lanes}): every lane gives equally many rows",
        ),
        (
            0 < scale.num_workers <= data.lanes,
            "scale.num_workers",
            f"must be between 1 and data.lanes ({data.lanes}): a worker reads at least one lane",
        ),
        (scale.min_workers <= scale.num_workers, "scale.min_workers", "must be at most scale.num_workers"),
        ("/" not in config.name and config.name.strip() != "", "name", "must be a plain name without /"),
    ]
    return [f"{key}: {what}" for holds, key, what in [*bounds, *rules] if not holds]


def schema_keys() -> list[str]:
    """The dotted name of every setting, in the order of the schema."""
    return [item.key for section in sections(Config) for item in section.settings]


MAPPINGS = [item.key for section in sections(Config) for item in section.settings if item.type.startswith("dict")]


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in MAPPINGS:
            flat |= _leaves(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _unresolved(tree: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))
