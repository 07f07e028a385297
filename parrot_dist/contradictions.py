"""What settings cannot be, each on its own and together: pure checks, without touching storage."""

from __future__ import annotations

from collections.abc import Iterator

from parrot_dist.config import Config
from parrot_dist.schema import out_of_bounds


def contradictions(config: Config) -> list[str]:
    """Every setting, or pair of settings, that cannot work, as `key: what is wrong`."""
    data, optim, scale = config.data, config.optim, config.scale
    places = {"output": config.output, "data.shards": data.shards}.items()
    rules = [
        (len(data.classes) > 1, "data.classes", "must name two emotions or more"),
        (len(set(data.classes)) == len(data.classes), "data.classes", "names an emotion twice"),
        (
            all(name is None or name in data.classes for name in data.emotions.values()),
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
        *_of_late_unfreezing(config),
        *((place.strip() != "", key, "must name a place") for key, place in places),
        ("/" not in config.name and config.name.strip() != "", "name", "must be a plain name without /"),
    ]
    return [*out_of_bounds(config), *(f"{key}: {what}" for holds, key, what in rules if not holds)]


def _of_late_unfreezing(config: Config) -> Iterator[tuple[bool, str, str]]:
    for name, branch in config.encoders.named():
        key, at, epochs = f"encoders.{name}.unfreeze_at_epoch", branch.unfreeze_at_epoch, config.optim.epochs
        yield at <= 0 or branch.unfreeze != "none", key, f"needs something to unfreeze in encoders.{name}.unfreeze"
        yield at <= 0 or at < epochs, key, f"must be below optim.epochs ({epochs}), or nothing is ever unfrozen"
