"""Reading S3 objects by plain GETs, which are continued from the byte they reached when they break.

The client is botocore's, with the settings, addresses and credentials that s3fs uses as well. s3fs serves everything
else; for reading, it takes up to 1.7 times the CPU time for ranges of 4 MiB, depending on the server, and it cannot go
on where an answer broke off.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from contextlib import closing
from functools import lru_cache
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

# Requests are repeated by botocore; adaptive mode would also throttle a healthy client.
SETTINGS: dict[str, Any] = {
    "retries": {"max_attempts": 8, "mode": "standard"},
    "connect_timeout": 5,
    "read_timeout": 30,
    "max_pool_connections": 16,
}
BREAKS = 8  # of one answer's body, before the store counts as out of order
LONGEST_PAUSE_S = 10.0
PIECE_BYTES = 2**20

log = logging.getLogger(__name__)
_making = threading.Lock()


class BrokenAnswer(OSError):  # noqa: N818
    """The body of an answer was not what its request asked for."""


def read_object(bucket: str, key: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes [start, end) of an object; `end` None: up to its end.

    Raises:
        EOFError: the object ends before `end`.
        BrokenAnswer: every answer broke off, or was of the wrong length.
        botocore.exceptions.ClientError: the store refused, or failed eight times in a row.
        botocore.exceptions.HTTPClientError: the store could not be reached as often.
    """
    if start == end:  # no range can say so
        return b""
    got: list[bytes] = []
    etag: dict[str, str] = {}  # a continued object has to be the same one
    retries = 0
    for attempt in range(BREAKS):
        begin = start + sum(map(len, got))
        if begin == end:  # it broke after its last byte
            break
        answer = _request(bucket, key, begin, end, etag)
        retries += answer["ResponseMetadata"].get("RetryAttempts", 0)
        try:
            _receive(answer, begin, end, got)
            break
        except (BrokenAnswer, IncompleteReadError, ReadTimeoutError, ResponseStreamingError) as error:
            reason, retries = error, retries + 1
            etag = {"IfMatch": answer["ETag"]} if "ETag" in answer else {}
            time.sleep(random.uniform(0, min(2**attempt / 4, LONGEST_PAUSE_S)))
    else:
        raise BrokenAnswer(f"{BREAKS} answers broke off; the last: {reason}") from reason
    if retries:
        log.warning("s3://%s/%s: read from byte %d on after %d retries", bucket, key, start, retries)
    return b"".join(got)


def _request(bucket: str, key: str, begin: int, end: int | None, etag: dict[str, str]) -> Any:
    last = "" if end is None else end - 1
    part = {"Range": f"bytes={begin}-{last}"} if begin or end is not None else {}
    try:
        return client().get_object(Bucket=bucket, Key=key, **part, **etag)
    except client().exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
            raise EOFError(f"it ends before byte {begin}") from error
        raise


def _receive(answer: Any, begin: int, end: int | None, got: list[bytes]) -> None:
    """Append the body of `answer` to `got` in pieces, as far as it is part of what was asked for."""
    before, length = len(got), answer["ContentLength"]
    with closing(answer["Body"]) as body:
        if begin or end is not None:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange", ""))
            if span is None or int(span[1]) != begin:
                raise BrokenAnswer(f"bytes from {begin} were asked for, {answer.get('ContentRange', 'all')} came")
            if end is not None and int(span[3]) < end:
                raise EOFError(f"it has {span[3]} bytes")
            length = (int(span[3]) if end is None else end) - begin
        while piece := body.read(PIECE_BYTES):
            got.append(piece)
    came = sum(map(len, got[before:]))
    if came > length:  # then nothing of it can be trusted
        del got[before:]
    if came != length:
        raise BrokenAnswer(f"{length} bytes from {begin} were asked for, {came} came")


def client() -> Any:
    """The S3 client of this process for the AWS variables of its environment as they are now."""
    with _making:
        facts = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _make_client(os.getpid(), facts)


@lru_cache(maxsize=1)
def _make_client(process: int, environment: tuple[tuple[str, str], ...]) -> Any:
    # Lengths are checked here; a checksum of every body would cost as much as its transfer.
    config = Config(**SETTINGS, response_checksum_validation="when_required")
    return botocore.session.get_session().create_client("s3", config=config)
