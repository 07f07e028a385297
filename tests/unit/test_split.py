"""Speaker-independent splits as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.config import Split
from parrot_dist.data.index import Index
from parrot_dist.data.split import split_speakers
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
    return Index(text, text, zeros, zeros, zeros, text, speaker, corpora, languages, {}, "")


def speakers_of(index: Index, rows: np.ndarray) -> set[tuple[str, str]]:
    return set(zip(index.corpus[rows].tolist(), index.speaker[rows].tolist(), strict=True))


@given(indexes(), st.integers(2, 5), st.integers(0, 100))
def test_parts_share_no_speaker_and_folds_test_each_sample_once(index: Index, folds: int, seed: int) -> None:
    tested = []
    for fold in range(folds):
        parts = split_speakers(index, Split(folds, fold, 0.2), seed)
        together = np.concatenate([parts.train, parts.validation, parts.test])
        assert sorted(together) == list(range(len(index)))
        groups = [speakers_of(index, rows) for rows in (parts.train, parts.validation, parts.test)]
        assert all(groups)
        assert sum(map(len, groups)) == len(set.union(*groups))
        tested += parts.test.tolist()
    assert sorted(tested) == list(range(len(index)))


@given(indexes(), st.integers(0, 100))
def test_folds_differ_by_one_speaker_at_most(index: Index, seed: int) -> None:
    sizes = [len(speakers_of(index, split_speakers(index, Split(5, fold, 0.1), seed).test)) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 1


def test_too_few_speakers_are_refused() -> None:
    n = 4
    zeros, text = np.zeros(n, np.int64), np.full(n, "", object)
    index = Index(text, text, zeros, zeros, zeros, text, np.array(list("aabb"), object), text, text, {}, "")
    with pytest.raises(UserError, match="2 speakers cannot fill 5 folds"):
        split_speakers(index, Split(5, 0, 0.1), 0)
