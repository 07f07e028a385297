"""Bodies that break, at places where a proxy cannot break them."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from parrot_dist import s3client


class Breaking:
    """A body that breaks after its last byte, where another would end."""

    def __init__(self, data: bytes) -> None:
        self.pieces = [data]

    def read(self, size: int) -> bytes:
        if self.pieces:
            return self.pieces.pop()
        raise ReadTimeoutError(endpoint_url="http://store")

    def close(self) -> None:
        """As a body does."""


def test_a_body_that_breaks_after_its_last_byte_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def answer(bucket: str, key: str, begin: int, end: int, etag: dict[str, str]) -> dict[str, Any]:
        requests.append((begin, end))
        body = Breaking(b"abc"[begin - 10 : end - 10])
        return {
            "Body": body,
            "ContentRange": f"bytes {begin}-{end - 1}/99",
            "ContentLength": end - begin,
            "ResponseMetadata": {},
        }

    monkeypatch.setattr(s3client, "_request", answer)
    monkeypatch.setattr(s3client, "LONGEST_PAUSE_S", 0)
    assert s3client.read_object("bucket", "key", 10, 13) == b"abc"
    assert requests == [(10, 13)]
