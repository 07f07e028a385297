"""The paper's tables as a grid of trainings."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist import configuration, grid, papertable
from parrot_dist.config import Branch
from parrot_dist.errors import UserError
from parrot_dist.grid import Cell, Experiment, Grid, cells_of, config_of

REPOSITORY = Path(__file__).parents[2]
COMMON = """
output: /tmp/out
grid:
  encoders:
    A(B): {source: "ssam:/encoders/base"}
    H: {source: "hf:me/hubert", revision: abc}
    M: {source: "hf:me/mms"}
"""
CORPUS = "name: one\ndata: {shards: /tmp/one, classes: [a, b]}\n"


ANY = configuration.load(
    None,
    [
        *("name=x", "output=/tmp/out", "data.shards=/tmp/one", "data.classes=[a,b]"),
        *(f"encoders.{branch}.source=hf:x" for branch in ("mamba", "attention")),
    ],
)


def write(folder: Path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder / f"{name}.yaml") for name in texts]


def test_a_file_without_a_corpus_is_for_all_wherever_it_stands(tmp_path: Path) -> None:
    files = write(tmp_path, a=CORPUS, common=COMMON, b=CORPUS.replace("one", "two"))
    experiments = grid.load(files, ["optim.epochs=3"])
    assert [one.config.name for one in experiments] == ["one", "two"]
    for one in experiments:
        assert list(one.grid.encoders) == ["A(B)", "H", "M"]
        assert one.config.optim.epochs == 3
    assert experiments[0].config.data.shards == "/tmp/one"
    assert experiments[1].config.data.shards == "/tmp/two"


@given(st.lists(st.sampled_from("ABCDEFGH"), min_size=2, max_size=8, unique=True), st.integers(1, 5))
def test_every_encoder_and_every_pair_is_trained_once_in_every_fold(names: list[str], folds: int) -> None:
    experiment = Experiment(ANY, Grid({name: Branch("hf:x") for name in names}, ["fcn", "ot", "concat"]))
    cells = list(cells_of(experiment, folds))
    assert len(cells) == len(set(cells))
    wanted = {(name,) for name in names} | set(combinations(names, 2))
    for fold in range(folds):
        assert {cell.encoders for cell in cells if cell.fold == fold and len(cell.encoders) == 1} | {
            cell.encoders for cell in cells if cell.fold == fold and cell.head == "ot"
        } == wanted
    pairs = len(names) * (len(names) - 1) // 2
    assert len(cells) == folds * (len(names) + 2 * pairs)


def test_a_cell_is_a_run_on_its_own_encoders(tmp_path: Path) -> None:
    (experiment,) = grid.load(write(tmp_path, a=CORPUS, common=COMMON), [])
    pair = config_of(Cell("one", ("H", "M"), "ot", 3), experiment)
    assert (pair.encoders.mamba.source, pair.encoders.attention.source) == ("hf:me/hubert", "hf:me/mms")
    assert pair.encoders.mamba.revision == "abc"
    assert (pair.fusion.name, pair.data.split.fold) == ("ot", 3)
    single = config_of(Cell("one", ("M",), "cnn", 0), experiment)
    assert (single.encoders.mamba.source, single.fusion.branch) == ("hf:me/mms", "mamba")


@pytest.mark.parametrize(
    ("texts", "words", "complaint"),
    [
        ({"common": COMMON}, [], "names a corpus"),
        ({"a": CORPUS, "b": CORPUS, "common": COMMON}, [], "called the same"),
        ({"a": CORPUS, "common": COMMON}, ["grid.heads=[parot]"], "did you mean parrot"),
        ({"a": CORPUS, "common": COMMON}, ["grid.haeds=[parrot]"], "haeds"),
        ({"a": CORPUS, "common": COMMON}, ["optim.epoch=3"], "did you mean optim.epochs"),
        ({"a": CORPUS, "common": COMMON}, ["encoders.mamba.source=x"], "grid.encoders"),
        ({"a": CORPUS, "common": COMMON.replace("H:", "a_b:")}, [], "without / and _"),
        ({"a": CORPUS, "common": COMMON.replace("revision: abc", "unfreeze: all")}, [], "frozen"),
        ({"a": CORPUS, "b": CORPUS.replace("one", "two") + "output: /x\n", "common": COMMON}, [], "output: must be"),
        ({"a": CORPUS, "b": CORPUS.replace("one", "two") + "scale: {use_gpu: true}\n", "common": COMMON}, [], "scale:"),
        ({"a": CORPUS, "common": COMMON}, ["grid=3"], "grid"),
        ({"a": CORPUS, "common": COMMON}, ["grid.heads=[]"], "must name a head"),
        ({"a": CORPUS, "common": COMMON}, ["fusion.name=ot"], "fusion.name: every cell"),
        ({"a": CORPUS, "common": COMMON}, ["data.keep_frozen=false"], "data.keep_frozen"),
        ({"a": CORPUS.replace("/tmp/one", "'${oc.env:NOT_THERE}/one'"), "common": COMMON}, [], "NOT_THERE"),
        ({"a": CORPUS}, ["output=/tmp/x"], "two encoders or more"),
        ({"a": CORPUS, "common": COMMON}, ["fusion.over=frames"], "fusion.over"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, texts: dict[str, str], words: list[str], complaint: str) -> None:
    files = write(tmp_path, **texts)
    with pytest.raises(UserError, match=complaint):
        grid.load(files, words)


def test_the_settings_of_the_paper_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PARROT_CORPORA", "PARROT_ENCODERS", "PARROT_OUTPUT"):
        monkeypatch.setenv(variable, f"/tmp/{variable.lower()}")
    experiments = grid.load([str(file) for file in sorted((REPOSITORY / "jobs" / "paper").glob("*.yaml"))], [])
    assert [one.config.name for one in experiments] == ["CREMA-D", "Emo-DB", "MESD"]
    for one in experiments:
        assert len(one.grid.encoders) == 8
        assert len([row for row, _ in one.rows() if len(row) == 2]) == 28
        assert (one.config.optim.epochs, one.config.optim.lr, one.config.optim.batch_size) == (50, 1e-3, 32)
        assert (one.config.fusion.epsilon, one.config.fusion.iterations) == (0.05, 50)


def test_places_of_encoders_are_absolute_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssam").mkdir()
    (experiment,) = grid.load(write(tmp_path, a=CORPUS, common=COMMON.replace("ssam:/encoders/base", "ssam:ssam")), [])
    assert experiment.grid.encoders["A(B)"].source == f"ssam:{tmp_path}/ssam"


def test_a_word_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="key=value"):
        papertable.parse(["oops", "--config", str(REPOSITORY / "jobs" / "paper" / "cremad.yaml")])
