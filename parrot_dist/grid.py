"""The paper's tables as a grid: heads on every encoder and on every pair of encoders, on several corpora, fold by fold.

The settings are those of a run, but for `grid.*` in the place of `encoders.*`: see jobs/paper/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from parrot_dist import configuration
from parrot_dist.config import Branch, Config, Encoders
from parrot_dist.errors import UserError
from parrot_dist.fusion import HEADS

GIVEN_BY_THE_GRID = ("encoders", "fusion.name", "fusion.branch", "data.split.fold")


@dataclass
class Grid:
    """What is combined with what."""

    encoders: dict[str, Branch] = field(default_factory=dict)
    """By the name that it has in the table; none is unfrozen."""
    heads: list[str] = field(default_factory=lambda: ["fcn", "cnn", "concat", "parrot"])


@dataclass(frozen=True)
class Experiment:
    """One corpus of a table: the settings that all its cells share, under the corpus's name, and what is combined."""

    config: Config
    grid: Grid

    def rows(self) -> list[tuple[tuple[str, ...], list[str]]]:
        """(encoders, the heads of the grid that take as many): each encoder alone, and all pairs in the given order."""
        single = {head: HEADS[head].single_branch for head in self.grid.heads}
        heads = {size: [head for head in single if single[head] == (size == 1)] for size in (1, 2)}
        return [(row, heads[size]) for size in (1, 2) for row in combinations(self.grid.encoders, size) if heads[size]]


@dataclass(frozen=True)
class Cell:
    """One training of one head: in fold `fold` of `corpus`, on the embeddings of one encoder or two."""

    corpus: str
    encoders: tuple[str, ...]
    head: str
    fold: int


def cells_of(experiment: Experiment, folds: int) -> Iterator[Cell]:
    """Every training that the table of a corpus needs, fold after fold."""
    rows = experiment.rows()
    for fold in range(folds):
        for encoders, heads in rows:
            for head in heads:
                yield Cell(experiment.config.name, encoders, head, fold)


def config_of(cell: Cell, experiment: Experiment) -> Config:
    """The settings of the run that a cell is; a single encoder takes the Mamba branch's place, whatever it is."""
    config = experiment.config
    branches = [experiment.grid.encoders[name] for name in cell.encoders]
    return replace(
        config,
        data=replace(config.data, split=replace(config.data.split, fold=cell.fold)),
        encoders=Encoders(branches[0], branches[-1]),
        fusion=replace(config.fusion, name=cell.head, branch="mamba"),
    )


def load(files: list[str], words: list[str]) -> list[Experiment]:
    """The experiments that YAML files describe, overridden by `key=value` words.

    A file without a corpus (`data.shards`) has settings for all the others, wherever it stands among them.

    Raises:
        UserError: a file or a setting cannot be used, or there is no corpus, or two are called the same.
    """
    trees = {file: configuration.read_yaml(file) for file in files}
    own = {file: tree for file, tree in trees.items() if "shards" in (tree.get("data") or {})}
    shared = [tree for file, tree in trees.items() if file not in own]
    if not own:
        raise UserError("--config: none of the files names a corpus (data.shards)")
    overrides = [configuration.parse_word(word) for word in words]
    experiments = [_experiment(file, [*shared, tree, *overrides]) for file, tree in own.items()]
    names = [experiment.config.name for experiment in experiments]
    if len(set(names)) < len(names):
        raise UserError(f"name: two corpora are called the same, of {', '.join(names)}")
    for key in ("output", "scale"):
        if any(getattr(one.config, key) != getattr(experiments[0].config, key) for one in experiments):
            raise UserError(f"{key}: must be the same for all corpora of a table")
    return experiments


def _experiment(file: str, layers: list[DictConfig]) -> Experiment:
    try:
        tree = OmegaConf.merge(*layers)
        assert isinstance(tree, DictConfig)
        grid = OmegaConf.merge(OmegaConf.structured(Grid), tree.pop("grid", {}))
        made = cast(Grid, OmegaConf.to_object(grid))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{file}: grid: {str(error).splitlines()[0]}") from error
    _check(made)
    given = [key for key in GIVEN_BY_THE_GRID if OmegaConf.select(tree, key, default=None) is not None]
    if given:
        raise UserError(f"{file}: {given[0]}: every cell of a table has its own; see grid.encoders and grid.heads")
    encoders = {name: configuration.absolute(branch) for name, branch in made.encoders.items()}
    first = next(iter(encoders.values()))
    # Every cell has its own; here they only make the settings complete, so that all can be checked at once.
    tree.encoders = {branch: {"source": first.source} for branch in ("mamba", "attention")}
    config = configuration.complete([tree])
    for unfit, key in (
        (config.fusion.over == "frames", "fusion.over"),
        (config.data.augment.on, "data.augment"),
        (not config.data.keep_frozen, "data.keep_frozen"),
    ):
        if unfit:
            raise UserError(f"{file}: {key}: the cells of a table share kept embeddings of the audio as it is")
    return Experiment(config, Grid(encoders, made.heads))


def _check(grid: Grid) -> None:
    if len(grid.encoders) < 2:
        raise UserError("grid.encoders: must name two encoders or more, as NAME: {source: ...}")
    strange = [name for name in grid.encoders if not name.strip() or set(name) & set("/_")]
    if strange:
        raise UserError(f"grid.encoders: {strange[0]!r} becomes part of a file's name; without / and _ please")
    thawed = [name for name, branch in grid.encoders.items() if branch.unfreeze != "none"]
    if thawed:
        raise UserError(f"grid.encoders.{thawed[0]}.unfreeze: the cells of a table share frozen encoders")
    if not grid.heads:
        raise UserError("grid.heads: must name a head")
    for head in grid.heads:
        HEADS[head]
