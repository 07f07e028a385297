"""What a worker's modules log reaches the person at the driver."""

from __future__ import annotations

import logging

from parrot_dist.training.monitor import LogToReporter


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
