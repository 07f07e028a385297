"""Which rank hangs, from the signs of life of all."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from parrot_dist.training.pulse import Beat, Heart, Pulse, feel, standpoint, suspects


def beat(rank: int, moves: int, waits: bool = False) -> Beat:
    return Beat(rank, f"node-{rank}", None, moves, step=moves, where="somewhere", waits=waits)


def found(*pulses: Pulse) -> list[tuple[int, bool]]:
    return [(one.beat.rank, one.silent) for one in suspects(pulses, now=100, seconds=10)]


def test_a_rank_that_gets_on_or_does_not_train_yet_is_no_suspect() -> None:
    assert found(Pulse(beat(0, 3), heard=99, moved=95), Pulse(beat(1, 0), heard=98, moved=0)) == []


def test_a_silent_rank_is_the_one_and_not_those_that_wait_for_it() -> None:
    assert found(Pulse(beat(0, 3), heard=99, moved=80), Pulse(beat(1, 3), heard=80, moved=80)) == [(1, True)]
    assert found(Pulse(beat(0, 0), heard=80, moved=80)) == [(0, True)]


def test_of_ranks_that_stand_still_those_that_do_not_wait_for_others_are_meant() -> None:
    waiting = Pulse(beat(0, 3, waits=True), heard=99, moved=80)
    assert found(waiting, Pulse(beat(1, 3), heard=99, moved=80)) == [(1, False)]
    assert found(waiting, Pulse(beat(1, 3, waits=True), heard=99, moved=80)) == [(0, False), (1, False)]


def test_a_move_is_remembered_until_the_next() -> None:
    pulse = feel(None, beat(0, 1), now=5)
    pulse = feel(pulse, beat(0, 1), now=7)
    assert (pulse.heard, pulse.moved) == (7, 5)
    assert feel(pulse, beat(0, 2), now=9).moved == 9


def test_the_name_of_the_line_is_what_a_person_looks_for() -> None:
    places: list[tuple[str, bool]] = []

    class Clock(float):
        def __rsub__(self, other: float) -> float:
            places.append(standpoint(threading.get_ident()))
            return 0.0

    suspects([Pulse(beat(0, 1), heard=Clock(0), moved=0)], now=100, seconds=10)
    where, waits = places[0]
    assert where.startswith("parrot_dist.training.pulse.")
    assert ", line " in where
    assert not waits


def test_a_rank_that_leaves_training_for_a_while_counts_as_one_that_has_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beats: list[Beat] = []

    def take(beat: Beat) -> None:
        beats.append(beat)
        heart._over.set()

    context = SimpleNamespace(current_actor=None)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    heart = Heart(SimpleNamespace(beat=SimpleNamespace(remote=take)), rank=0, hang_seconds=1e-3)
    for step in (5, 6, None, 7):
        heart.at(step)
        heart._over.clear()
        heart._run()
    assert [(beat.moves, beat.step) for beat in beats] == [(1, 5), (2, 6), (0, 6), (1, 7)]


def test_a_rank_beats_though_nobody_asks_who_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Event()
    monkeypatch.setattr("parrot_dist.training.pulse.LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr("ray.get", lambda _: None)
    monitor = SimpleNamespace(
        beat=SimpleNamespace(remote=lambda _: beats.set()), forget=SimpleNamespace(remote=lambda _: None)
    )
    with Heart(monitor, rank=0, hang_seconds=0):
        assert beats.wait(20)
