"""One driver at a time: two of one run would write over each other's checkpoints.

A driver holds the highest numbered object in the run's folder `driver/`, made by a conditional write that only one of
several can win, and renews it. One that is no longer renewed is that of a dead driver, and the next number is free.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from parrot_dist import storage
from parrot_dist.errors import UserError

FOLDER = "driver"  # of the run
NAME = re.compile(r"(\d+)\.json")
BEAT_S = 5.0
STALE_S = 30.0  # without a beat; longer than a store's hiccup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A driver: where it runs, since when (UTC), and how often it has renewed its lease.

    `machine` tells machines of one name apart, and what numbers its processes by itself on one of them.
    """

    token: str
    host: str
    process: int
    since: str
    beats: int
    machine: str = ""

    def dump(self) -> bytes:
        """As it lies on storage."""
        return json.dumps(asdict(self)).encode()

    @property
    def is_dead(self) -> bool:
        """Whether that can be seen from here; only for a driver on this machine."""
        if (self.host, self.machine) != (socket.gethostname(), this_machine()):
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # it is another user's
        return False


def this_machine() -> str:
    """What tells this machine since its start, and its numbering of processes, from others; empty but on Linux."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@dataclass(frozen=True)
class Claim:
    """The lease of a driver as its workers know it, which may live longer than the driver."""

    run_url: str
    number: int
    token: str

    def loss(self) -> str | None:
        """Why the driver does not hold the run any more; None as long as it does.

        Raises:
            UserError, OSError: the store does not say.
        """
        newest, holder = _held(self.run_url)
        if holder is None and newest >= 0:  # deleted since, by a driver that has a higher number
            newest, holder = _held(self.run_url)
        if holder is None:
            return (
                f"{_place(self.run_url, self.number)}: this driver's lease is gone: the run's folder or its bucket was "
                "removed, or another driver has trained the run meanwhile; the same command goes on from the newest "
                "checkpoint that is there"
            )
        # Others may have come and gone while this driver stood still, and a number comes again then.
        if newest != self.number or holder.token != self.token:
            return _complaint(self.run_url, holder)
        return None

    def check(self) -> None:
        """Return if the driver still holds the run.

        Raises:
            UserError: it does not, see `loss`.
        """
        loss = self.loss()
        if loss:
            raise UserError(loss)


class Lease:
    """What a driver holds; `lost` says to whom, if another driver took it over, which found it dead."""

    def __init__(self, run_url: str, number: int, holder: Holder) -> None:
        self.lost: str | None = None
        self.claim = Claim(run_url, number, holder.token)
        self._place, self._holder = _place(run_url, number), holder

    def renew(self, beats: int) -> None:
        """Say that the driver lives."""
        self.lost = self.claim.loss()
        if not self.lost:
            storage.write_bytes(self._place, replace(self._holder, beats=beats).dump())

    def release(self) -> None:
        """Let the next driver in at once, unless it is there: it may have this one's number."""
        if self.claim.loss() is None:
            storage.delete(self._place)


@contextmanager
def hold(run_url: str, tell: Callable[[str], None]) -> Iterator[Lease]:
    """The lease of the run for this driver; `tell` hears what is waited for, up to half a minute, where one is held.

    Raises:
        UserError: another driver trains this run.
    """
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    holder = Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), now, 0, this_machine())
    lease = Lease(run_url, _take(run_url, holder, tell), holder)
    over = threading.Event()
    thread = threading.Thread(target=_keep, args=(lease, over), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        with suppress(Exception):  # the store is away, which must not hide why the run ended
            lease.release()


def _keep(lease: Lease, over: threading.Event) -> None:
    beats, renewed = 0, time.monotonic()
    while not over.wait(BEAT_S) and not lease.lost:
        beats += 1
        try:
            lease.renew(beats)
            renewed = time.monotonic()
        except (UserError, OSError):
            pass  # the store is away, from any other driver too
        except Exception as error:
            # Whatever it is, other drivers see this one fall silent, and may come.
            logger.warning("the lease on %s cannot be renewed: %r", lease.claim.run_url, error)
            if time.monotonic() - renewed > STALE_S:
                lease.lost = f"{lease.claim.run_url}: its lease cannot be renewed any more: {error!r}"


def _take(run_url: str, holder: Holder, tell: Callable[[str], None]) -> int:
    while True:
        number = _newest(run_url)
        if number >= 0:
            _await_death(run_url, number, tell)
        storage.create_bytes(_place(run_url, number + 1), holder.dump())
        if _read(run_url, number + 1) == holder:  # the answer to a write that was won may have been lost
            for older in _numbers(run_url):
                if older <= number:
                    storage.delete(_place(run_url, older))
            return number + 1


def _await_death(run_url: str, number: int, tell: Callable[[str], None]) -> None:
    """Return when the holder is known to be dead, or gone.

    Raises:
        UserError: it lives.
    """
    seen = _read(run_url, number)
    if seen is None or seen.is_dead:
        return
    tell(f"waiting to see whether the driver on {seen.host}, started {seen.since}, has died")
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 5)
        now = _read(run_url, number)
        if now is None:
            return
        if now != seen:
            raise UserError(_complaint(run_url, now))


def _complaint(run_url: str, holder: Holder) -> str:
    who = f"process {holder.process} on {holder.host}, started {holder.since}"
    return f"name: {run_url} is being trained by {who}; stop that one, or give this run another name=..."


def _place(run_url: str, number: int) -> str:
    return storage.join(run_url, FOLDER, f"{number:08d}.json")


def _newest(run_url: str) -> int:
    """The highest number; -1 if there is none."""
    return max(_numbers(run_url), default=-1)


def _held(run_url: str) -> tuple[int, Holder | None]:
    """The highest number, and who holds it; None if there is none, or it was deleted meanwhile."""
    newest = _newest(run_url)
    return newest, _read(run_url, newest) if newest >= 0 else None


def _numbers(run_url: str) -> list[int]:
    # Other files may lie there too: where storage is a file system, what another driver is just writing.
    found = [NAME.fullmatch(name) for name in storage.list_files(storage.join(run_url, FOLDER))]
    return [int(name[1]) for name in found if name]


def _read(run_url: str, number: int) -> Holder | None:
    """The holder of this number; None if there is none, and one that nothing is known of if it cannot be understood."""
    data = storage.find_bytes(_place(run_url, number))
    if data is None:
        return None
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):  # damaged, or of another version: it lives as long as it changes
        return Holder(hashlib.sha256(data).hexdigest(), "an unknown host", 0, "at an unknown time", 0)
