"""The schema of every setting: its type, default, bounds and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from parrot_dist.fusion import HEADS, HeadSettings
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
    classes: list[str] = setting(MISSING, "emotions, in the order of the logits")
    emotions: dict[str, str | None] = setting(
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
    max_seconds: float = setting(12.0, "seconds after which an utterance is cut", least=0.1, below=3600)
    max_broken: float = setting(
        0.01, "share of an epoch's utterances that may be unreadable before the run fails", least=0, below=1
    )
    keep_frozen: bool = setting(True, "compute what lies below the unfrozen layers once, and keep it on storage")
    cache: str = setting("", "URL where that is kept; empty: `cache` below `output`")
    node_cache_gb: float = setting(
        0.0,
        "disk space of each node, in GB, in which its workers share what they read of the shards; 0: none",
        least=0,
        below=1e6,
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
    unfreeze_at_epoch: int = setting(
        0, "completed epochs, counted from the start of the run, after which that begins; frozen until then", least=0
    )
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

    def named(self) -> list[tuple[str, Branch]]:
        """(name, settings) of each branch, in the order of the fields."""
        return [("mamba", self.mamba), ("attention", self.attention)]

    def unfrozen(self, epoch: int) -> dict[str, str]:
        """What is trained of each branch in epoch `epoch`, counted from 0, in the words of `Branch.unfreeze`."""
        return {name: branch.unfreeze if epoch >= branch.unfreeze_at_epoch else "none" for name, branch in self.named()}


@dataclass
class Fusion(HeadSettings):
    """The head; the defaults are the paper's."""

    name: str = setting("parrot", "the head; fcn and cnn hear one encoder only", choices=tuple(HEADS))
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
    tracking: list[str] = setting(
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
"""Settings, and sections, that may differ between a run and its continuation; any other would make it another run."""


def free_to_change(key: str) -> bool:
    """Whether a run may go on with another value of the setting `key`."""
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)


def schema_keys() -> list[str]:
    """The dotted name of every setting, in the order of the schema."""
    return [item.key for section in sections(Config) for item in section.settings]
