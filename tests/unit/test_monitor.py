"""What a worker's modules log reaches the person at the driver."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import ray.train
from ray.exceptions import ActorDiedError, ActorUnavailableError

from parrot_dist.training import monitor
from parrot_dist.training.monitor import LogToReporter
from tests.waiting import wait_until


class Reporter:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def put(self, kind: str, text: str) -> None:
        self.events.append((kind, text))


def test_what_is_logged_becomes_messages_and_warnings() -> None:
    reporter = Reporter()
    logger = logging.Logger("test")
    logger.addHandler(LogToReporter(reporter))
    logger.debug("details")
    logger.info("scan: %s", "PyTorch")
    logger.warning("slow")
    assert reporter.events == [("message", "scan: PyTorch"), ("warning", "slow")]


def test_a_rank_hears_of_a_stop_and_of_the_loss_of_the_monitor_without_waiting_for_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(answer: BaseException | bool) -> bool:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(monitor, "ray", SimpleNamespace(get=get))
    monkeypatch.setattr(monitor, "ASK_SECONDS", 0.0)
    away = ActorUnavailableError("for a moment", None)
    listening, deaf = (
        monitor.Reporter(SimpleNamespace(stop_wanted=SimpleNamespace(remote=iter(answers).__next__)), None)
        for answers in ([False, away, True], [False, away, ActorDiedError()])
    )
    wait_until(listening.stop_wanted, 20)
    with pytest.raises(ActorDiedError):
        wait_until(deaf.stop_wanted, 20)


@pytest.mark.parametrize(
    ("deadline_ms", "nodes", "text"),
    [
        (1767323045678, {"node": [3]}, "worker 3 loses its node at 03:04:05 UTC"),
        (None, {"one": [4, 0], "other": [2]}, "workers 0, 2, 4 lose their nodes soon"),
    ],
)
def test_a_notice_says_whose_nodes_are_taken_away_and_when(
    monkeypatch: pytest.MonkeyPatch, deadline_ms: int | None, nodes: dict[str, list[int]], text: str
) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: ray.train.PreemptionInfo(deadline_ms, nodes))
    assert monitor.Reporter(None, None).notice() == text
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    assert monitor.Reporter(None, None).notice() is None
