"""Windows of a recording that arrives in pieces, and the pieces of a file that is never whole in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from parrot_dist.data import audio
from parrot_dist.data.windows import BLOCK_VALUES, cut, read_blocks
from parrot_dist.errors import UserError
from tests.corpus import flac_that_claims


@given(
    blocks=st.lists(st.integers(0, 30), max_size=8),
    sizes=st.integers(1, 20).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))),
)
def test_windows_are_slices_that_cover_all_and_do_not_depend_on_the_pieces(
    blocks: list[int], sizes: tuple[int, int]
) -> None:
    (size, hop), total = sizes, sum(blocks)
    whole = np.arange(total, dtype=np.float32)
    pieces = np.split(whole, np.cumsum(blocks)[:-1]) if blocks else []
    found = [(first, window.tolist()) for first, window in cut(pieces, size, hop)]
    assert found == [(first, window.tolist()) for first, window in cut([whole], size, hop)]
    assert all(window == whole[first : first + size].tolist() for first, window in found)
    assert {number for _, window in found for number in window} == set(range(total))
    firsts = [first for first, _ in found]
    assert firsts[:-1] == list(range(0, hop * (len(found) - 1), hop))
    if total >= size:
        assert all(len(window) == size for _, window in found)
        assert firsts[-1] == total - size or firsts[-1] == hop * (len(found) - 1)
    elif total:
        assert firsts == [0]
    assert firsts == sorted(set(firsts))


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 1)])
def test_the_pieces_of_a_file_are_the_file(tmp_path: Path, rate: int, channels: int) -> None:
    frames = 3 * BLOCK_VALUES // channels + 17
    noise = np.random.default_rng(0).normal(0, 0.1, (frames, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", noise, rate)
    blocks = list(read_blocks(str(tmp_path / "a.flac")))
    assert len(blocks) >= 4
    assert max(map(len, blocks)) < 2.1 * BLOCK_VALUES
    assert np.array_equal(np.concatenate(blocks), audio.load(str(tmp_path / "a.flac")))


def test_what_is_no_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not a sound")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 16000, "FLOAT")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    (tmp_path / "stream.flac").write_bytes(flac_that_claims(0))
    for name, reason in (
        ("notes.wav", "not a readable"),
        ("none.wav", "there is no such file"),
        ("nan.wav", "not finite"),
        ("nothing.wav", "the audio is empty"),
        ("stream.flac", "does not say how long it is"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            list(read_blocks(str(tmp_path / name)))
        assert str(tmp_path / name) in str(error.value)
