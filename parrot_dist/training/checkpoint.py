"""Checkpoints on storage: parts first, the manifest that makes them valid last.

A checkpoint is a folder `<run>/checkpoints/step-00000042/`. It counts once its manifest is there and every part has the
size that the manifest says; anything less is a torn upload, and is never resumed from. There are no pointers to a
newest or best checkpoint that could point at something that is not there: both are read off the manifests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from parrot_dist import storage
from parrot_dist.errors import UserError
from parrot_dist.reporting.metrics import DIGITS

MANIFEST = "manifest.json"
FOLDER = "checkpoints"

SETTLE_S = 20.0  # that a run which fails waits for what is being saved

logger = logging.getLogger(__name__)


class Damaged(UserError):  # noqa: N818
    """A part of a checkpoint is not what was saved."""


def unfenced() -> None:
    """The fence of a run that no driver holds: anybody may write."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: steps taken, those included whose rows could all not be read.
        epoch: epochs completed.
        epoch_step: steps taken in the epoch after those; 0 at an epoch's end.
        score: validation UAR at an epoch's end, else None.
        finished: the run has nothing left to do.
        classes: emotions in the order of the logits.
        encoders: branch -> source, SHA-256 (digest) and, where it is from the Hub, commit (revision) of the base
            encoder, whose frozen weights are not stored again.
        index_digest: the corpus that was trained on.
        files: part -> size in bytes and SHA-256.
    """

    step: int
    epoch: int
    epoch_step: int
    score: float | None
    finished: bool
    classes: list[str]
    encoders: dict[str, dict[str, str]]
    index_digest: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def last_epoch(self) -> int:
        """The epoch, counted from 0, of the last step: the checkpoint holds what that one trained."""
        return self.epoch if self.epoch_step else max(0, self.epoch - 1)


@dataclass(frozen=True)
class Found:
    """A complete checkpoint on storage."""

    url: str
    manifest: Manifest

    @property
    def run_url(self) -> str:
        """Where its run is; of a checkpoint that was copied away from its run, its own place."""
        return self.url.rpartition(f"/{FOLDER}/")[0] or self.url

    def evaluation_url(self, split: str) -> str:
        """Where its scores on `split` are kept, in its run."""
        return storage.join(self.run_url, "evaluation", f"step-{self.manifest.step:08d}-{split}")


def save(run_url: str, manifest: Manifest, parts: Mapping[str, bytes], fence: Callable[[], None] = unfenced) -> str:
    """Write a checkpoint below `run_url` and return its URL; returns when it is complete.

    `fence` is called before each change of the store, and raises if this is no longer the one writer of the run. (Who
    takes over between the two is not noticed: stores make no write depend on another object.)
    """
    url = storage.join(run_url, FOLDER, f"step-{manifest.step:08d}")
    again = f"{url}-again"
    # Of a run that was stopped before it had validated this step: it is needed yet. Or one of the two is damaged.
    if _read_manifest(url) is not None or _read_manifest(again) is not None:
        url = again
    fence()
    storage.delete(storage.join(url, MANIFEST))  # an older try must not vouch for the new parts
    _write_parts(url, replace(manifest, files={}), parts, fence)
    return url


def add_part(url: str, name: str, data: bytes, fence: Callable[[], None] = unfenced) -> None:
    """Add a part to the complete checkpoint at `url`, which is complete at every moment, without it or with it.

    `fence`: see `save`.

    Raises:
        UserError: it is gone.
    """
    fence()
    manifest = _read_manifest(url)
    if manifest is None:
        raise UserError(f"{url}: it was deleted while this run was adding to it")
    _write_parts(url, manifest, {name: data}, fence)


def _write_parts(url: str, manifest: Manifest, parts: Mapping[str, bytes], fence: Callable[[], None]) -> None:
    """Write `parts`, and then `manifest` with them added to what it names."""
    for name, data in parts.items():
        fence()
        storage.write_bytes(storage.join(url, name), data)
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()}
    text = json.dumps(asdict(replace(manifest, files=manifest.files | files)), indent=1)
    fence()
    storage.write_bytes(storage.join(url, MANIFEST), text.encode())


def find_all(run_url: str) -> list[Found]:
    """The complete checkpoints of a run, oldest first; torn ones are named in the log.

    Of two at one step the later one has what the other had, or takes the place of a damaged one.
    """
    root = storage.join(run_url, FOLDER)
    return _complete(root, storage.list_files(root))


def _complete(root: str, files: Mapping[str, int]) -> list[Found]:
    """The complete ones of the checkpoints below `root`, where `files` lie."""
    found = []
    for name in sorted({name.partition("/")[0] for name in files}):
        url = storage.join(root, name)
        manifest = _read_manifest(url) if f"{name}/{MANIFEST}" in files else None
        if manifest is None or any(
            files.get(f"{name}/{part}") != facts["size"] for part, facts in manifest.files.items()
        ):
            logger.warning("%s is incomplete and is passed over", url)
            continue
        found.append(Found(url, manifest))
    return found


def newest(run_url: str) -> Found | None:
    """The complete checkpoint with the most steps."""
    found = find_all(run_url)
    return found[-1] if found else None


def newest_intact(run_url: str) -> Found | None:
    """The newest complete checkpoint that holds what was saved, which is read for that; others are named in the log.

    Raises:
        Damaged: there are complete checkpoints, and none holds what was saved.
    """
    damage: Damaged | None = None
    for found in reversed(find_all(run_url)):
        try:
            for part in found.manifest.files:
                read_part(found, part)
            return found
        except Damaged as error:
            logger.warning("%s; going back to the checkpoint before", error)
            damage = damage or error
    if damage is not None:  # what is left may still be of use to a person, and must not be written over
        raise damage
    return None


def best(run_url: str) -> Found | None:
    """The complete checkpoint with the highest validation score, the earliest of equals."""
    return best_of(find_all(run_url))


def best_of(found: list[Found]) -> Found | None:
    """The one of `found` with the highest score, the earliest of equals; None if none has a score."""
    scored = [one for one in _latest(found) if one.manifest.score is not None]
    return max(scored, key=lambda one: (round(one.manifest.score or 0.0, DIGITS), -one.manifest.step), default=None)


def _latest(found: list[Found]) -> list[Found]:
    """The last one at each step."""
    return list({one.manifest.step: one for one in found}.values())


def locate(url: str) -> Found:
    """The checkpoint that a person means by `url`: a checkpoint's own folder, or a run's, of which the best.

    Raises:
        UserError: there is no complete checkpoint.
    """
    if storage.exists(storage.join(url, MANIFEST)):
        manifest = _read_manifest(url)
        if manifest is None:
            raise UserError(f"{url}: its {MANIFEST} is not that of a checkpoint")
        return Found(url.rstrip("/"), manifest)
    found = best(url) or newest(url)
    if found is None:
        raise UserError(f"{url}: neither a complete checkpoint nor a run that has one")
    return found


def read_part(found: Found, name: str) -> bytes:
    """The bytes of one part, compared with the manifest.

    Raises:
        UserError: the part is missing.
        Damaged: it is not what was saved.
    """
    data = storage.read_bytes(storage.join(found.url, name))
    if hashlib.sha256(data).hexdigest() != found.manifest.files[name]["sha256"]:
        raise Damaged(f"{found.url}: {name} is damaged; its content is not what was saved")
    return data


def retain(run_url: str, keep: int, step: int, fence: Callable[[], None] = unfenced) -> None:
    """Delete all checkpoints but the newest `keep` and the best, and what torn uploads left; manifests go first.

    Only for the one writer of a run, while it writes nothing; `fence`: see `save`. `step`: of the newest. What lies
    beyond it was passed over as damaged when the run went on, and must not take the place of a whole one.
    """
    root = storage.join(run_url, FOLDER)
    files = storage.list_files(root)  # once: what one listing has as complete, another must not show as torn
    found = _latest([one for one in _complete(root, files) if one.manifest.step <= step])
    kept = {one.url for one in found[-keep:]} | {one.url for one in [best_of(found)] if one}
    for name in {name.partition("/")[0] for name in files}:
        url = storage.join(root, name)
        if url not in kept:
            fence()
            storage.delete(storage.join(url, MANIFEST))
            storage.delete(url)


class Writer:
    """Makes and saves checkpoints in the background, one at a time, so that training goes on meanwhile."""

    def __init__(
        self,
        run_url: str,
        keep: int,
        tell: Callable[..., None] = lambda **_: None,
        fence: Callable[[], None] = unfenced,
    ) -> None:
        """`tell` is called with `step`, `url` and `stall` of every checkpoint that is complete, in another thread.

        `fence`: see `save`.
        """
        self._run_url, self._keep, self._tell, self._fence = run_url, keep, tell, fence
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._url = ""  # of the newest complete one

    def save(self, manifest: Manifest, dump: Callable[[], Mapping[str, bytes]], began: float) -> None:
        """Start saving the parts that `dump` gives; first waits for the one before, and raises what went wrong with it.

        `began`: when training stopped for it (`time.perf_counter`); the seconds until this returns are its `stall`.
        """
        self.wait()
        self._pending = self._pool.submit(self._save, manifest, dump, time.perf_counter() - began)

    @property
    def busy(self) -> bool:
        """Whether something is being saved."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Return when what was given to `save` is complete on storage; raises what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def settle(self, seconds: float = SETTLE_S) -> None:
        """Return when what was given to `save` is complete or has failed, or after so many seconds."""
        if self._pending is not None:
            futures.wait([self._pending], seconds)

    def add(self, name: str, data: bytes, url: str | None = None) -> None:
        """Add a part to the complete checkpoint at `url`, or to what was given to `save` last once it is complete."""
        self.wait()
        add_part(url or self._url, name, data, self._fence)

    def _save(self, manifest: Manifest, dump: Callable[[], Mapping[str, bytes]], stall: float) -> None:
        self._url = save(self._run_url, manifest, dump(), self._fence)
        self._tell(step=manifest.step, url=self._url, stall=stall)
        retain(self._run_url, self._keep, manifest.step, self._fence)


def _read_manifest(url: str) -> Manifest | None:
    data = storage.find_bytes(storage.join(url, MANIFEST))
    if data is None:  # another process retired this checkpoint since it was listed
        return None
    try:
        return Manifest(**json.loads(data))
    except (ValueError, TypeError):
        return None
