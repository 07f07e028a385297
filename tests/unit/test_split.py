"""Speaker-independent splits as properties."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.config import Split
from parrot_dist.data.index import Index
from parrot_dist.data.split import Parts, count_folds, split_rows
from parrot_dist.errors import UserError


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    """Samples of 10 to 40 speakers, whose names repeat between two corpora; some speak two languages."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    speakers = draw(st.integers(5, 20))
    n = draw(st.integers(speakers * 4, 200))
    names = np.concatenate([np.arange(speakers), rng.integers(0, speakers, n - speakers)])
    corpora = np.array(["a", "b"], object)[rng.integers(0, 2, n)]
    languages = np.array(["de", "en", "es"], object)[(names + (rng.random(n) < 0.05)) % 3]
    zeros, text = np.zeros(n, np.int64), np.full(n, "", object)
    speaker = np.array([f"s{name}" for name in names], object)
    return Index(text, text, zeros, zeros, zeros, text, speaker, corpora, languages, text, {}, "")


def split_all(index: Index, split: Split, seed: int = 0) -> Parts:
    return split_rows(index, np.arange(len(index)), split, seed)


def speakers_of(index: Index, rows: np.ndarray) -> set[tuple[str, str]]:
    return set(zip(index.corpus[rows].tolist(), index.speaker[rows].tolist(), strict=True))


@given(indexes(), st.integers(2, 5), st.integers(0, 100))
def test_parts_share_no_speaker_and_folds_test_each_sample_once(index: Index, folds: int, seed: int) -> None:
    tested = []
    for fold in range(folds):
        parts = split_all(index, Split("speakers", folds, fold, 0.2), seed)
        together = np.concatenate([parts.train, parts.validation, parts.test])
        assert sorted(together) == list(range(len(index)))
        groups = [speakers_of(index, rows) for rows in (parts.train, parts.validation, parts.test)]
        assert all(groups)
        assert sum(map(len, groups)) == len(set.union(*groups))
        tested += parts.test.tolist()
    assert sorted(tested) == list(range(len(index)))


@given(indexes(), st.integers(0, 100))
def test_folds_differ_by_one_speaker_at_most(index: Index, seed: int) -> None:
    sizes = [len(speakers_of(index, split_all(index, Split("speakers", 5, fold, 0.1), seed).test)) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 1


def test_too_few_speakers_are_refused() -> None:
    n = 4
    zeros, text = np.zeros(n, np.int64), np.full(n, "", object)
    index = Index(text, text, zeros, zeros, zeros, text, np.array(list("aabb"), object), text, text, text, {}, "")
    with pytest.raises(UserError, match="2 speakers cannot fill 5 folds"):
        split_all(index, Split())


@given(
    st.integers(1, 30),
    st.integers(2, 9),
    st.floats(0.01, 0.99),
    st.sampled_from(["speakers", "utterances"]),
    st.integers(0, 100),
)
def test_a_cross_validation_is_refused_before_it_begins_or_all_its_folds_have_all_their_parts(
    speakers: int, folds: int, share: float, by: str, seed: int
) -> None:
    index = official([""] * speakers)
    index = replace(index, key=index.speaker, language=np.resize(np.array(["de", "en", "en"], object), speakers))
    everyone = np.arange(speakers)
    refusal = why(lambda: count_folds(index, everyone, Split(by, folds, 0, share)))
    refusals = {refused(index, Split(by, folds, fold, share), seed) for fold in range(folds)} - {""}
    assert refusals == ({refusal} if refusal else set())
    advice = re.search(r"folds=(\d+)", refusal)
    assert bool(advice) == (refusal != "" and speakers >= 3)
    if advice:
        advised = int(advice[1])
        assert {refused(index, Split(by, advised, fold, share), seed) for fold in range(advised)} == {""}


def refused(index: Index, split: Split, seed: int) -> str:
    """Why; empty where there is something in each part."""

    def check() -> None:
        parts = split_all(index, split, seed)
        assert all(len(rows) for rows in (parts.train, parts.validation, parts.test))

    return why(check)


def why(call: Callable[[], object]) -> str:
    """With what message `call` is refused; empty if it is not."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@given(indexes(), st.integers(0, 100))
def test_what_is_left_out_changes_no_part_of_the_others_but_its_own(index: Index, seed: int) -> None:
    rows = np.flatnonzero(np.arange(len(index)) % 7 > 0)
    parts = split_rows(index, rows, Split(), seed)
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test])) == rows.tolist()


@given(indexes(), st.integers(0, 100), st.integers(2, 4))
def test_the_folds_of_the_corpus_each_test_once(index: Index, seed: int, folds: int) -> None:
    names = np.array([f"Session{row % folds + 1}" for row in range(len(index))], object)
    index = replace(index, fold=names)
    assert count_folds(index, np.arange(len(index)), Split("corpus")) == folds
    for fold in range(folds):
        parts = split_all(index, Split("corpus", 5, fold), seed)
        assert set(names[parts.test]) == {f"Session{fold + 1}"}
        assert f"Session{fold + 1}" not in set(names[np.concatenate([parts.train, parts.validation])])
        assert not speakers_of(index, parts.train) & speakers_of(index, parts.validation)
    with pytest.raises(UserError, match="must be below"):
        split_all(index, Split("corpus", 5, folds), seed)


@pytest.mark.parametrize("dev", ["dev", "Development", "val"])
def test_official_parts_are_taken_as_they_are(dev: str) -> None:
    index = official(["Train"] * 5 + [dev] * 3 + ["Test1", "Test2", "elsewhere"])
    assert count_folds(index, np.arange(len(index)), Split("corpus")) == 1
    parts = split_all(index, Split("corpus"))
    assert [part.tolist() for part in (parts.train, parts.validation, parts.test)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7],
        [8, 9],
    ]


@pytest.mark.parametrize("names", [["train", "dev"], ["test", "dev"], ["Development", "Evaluation", "1"]])
def test_parts_of_which_one_is_missing_are_not_taken_for_folds(names: list[str]) -> None:
    with pytest.raises(UserError, match="neither folds nor a training and a test part"):
        split_all(official(names * 3), Split("corpus"))


def test_folds_are_counted_by_number_and_over_what_is_used() -> None:
    index = official([f"fold{number}" for number in range(1, 12) for _ in range(3)])
    assert {index.fold[row] for row in split_all(index, Split("corpus", fold=1)).test} == {"fold2"}
    assert count_folds(index, np.arange(30), Split("corpus")) == 10


def test_utterances_may_be_dealt_instead_of_speakers() -> None:
    index = replace(official(["x"] * 50), key=np.array([f"k{row}" for row in range(50)], object))
    index = replace(index, speaker=np.array(["C", "F"] * 25, object))
    tested = [split_all(index, Split("utterances", 5, fold)).test for fold in range(5)]
    assert [len(rows) for rows in tested] == [10] * 5
    assert sorted(np.concatenate(tested)) == list(range(50))


@pytest.mark.parametrize("names", [[""] * 9, ["a"] * 9, ["a", "b", ""] * 3])
def test_a_corpus_without_folds_of_its_own_says_so(names: list[str]) -> None:
    with pytest.raises(UserError, match="no folds of its own"):
        split_all(official(names), Split("corpus"))
    with pytest.raises(UserError, match="no folds of its own"):
        count_folds(official(names), np.arange(len(names)), Split("corpus"))


def official(names: list[str]) -> Index:
    """One utterance of a speaker of its own for each of the parts `names`."""
    n = len(names)
    zeros, text = np.zeros(n, np.int64), np.full(n, "", object)
    speakers = np.array([f"s{row}" for row in range(n)], object)
    return Index(text, text, zeros, zeros, zeros, text, speakers, text, text, np.array(names, object), {}, "")
