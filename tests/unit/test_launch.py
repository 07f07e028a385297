"""The driver's view of a run, whatever happens to what it looks with."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from parrot_dist import configuration, storage
from parrot_dist.errors import Unreachable
from parrot_dist.training import launch, monitor
from parrot_dist.training.launch import Watch, conclude
from parrot_dist.training.monitor import Event, Monitor

LOST = ActorDiedError()
AWAY = ActorUnavailableError("it does not answer", None)


class Trainer:
    """A run that goes on until it is given up."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def fit(self) -> None:
        assert self.ended.wait(20)
        raise RuntimeError("the controller was killed")

    def give_up(self) -> None:
        self.ended.set()


class Handle:
    """A `Monitor` as an actor's handle shows it; what `faults` holds is raised instead of the next events."""

    def __init__(self) -> None:
        self.actor, self.faults = Monitor(), list[BaseException]()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=partial(partial, self.call, name))

    def call(self, name: str, *args: Any) -> Any:
        if name == "take" and self.faults:
            raise self.faults.pop(0)
        return getattr(self.actor, name)(*args)


class View:
    """Keeps what is shown; `broken`: raises it instead."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.broken: BaseException | None = None

    def show(self, kind: str, **data: Any) -> None:
        if self.broken:
            raise self.broken
        self.shown.append(f"{data['how']} {data['newest']} {data['best']}" if kind == "end" else data.get("text", kind))

    def close(self) -> None:
        pass


class Run:
    """A `Watch` of a run, with all it looks at."""

    def __init__(self, folder: Path, inbox: socket.socket) -> None:
        words = ["name=run", f"output={folder}", "data.shards=none", "data.classes=[a,b]"]
        words += ["encoders.mamba.source=ssam:none", "encoders.attention.source=hf:none"]
        self.config = configuration.load(None, words)
        self.trainer, self.monitor, self.view, self.lease = Trainer(), Handle(), View(), SimpleNamespace(lost=None)
        things: Any = (self.monitor, self.trainer, inbox, self.view, self.lease)
        self.watch = Watch(self.config, *things)

    def heard(self, kind: Any = "message", **data: Any) -> None:
        """Let a worker say something."""
        self.monitor.actor.put(Event(kind, data))


@pytest.fixture
def signals() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Where the driver reads signals, and where they are put."""
    reader, writer = socket.socketpair()
    with reader, writer:
        yield reader, writer


@pytest.fixture
def run(tmp_path: Path, signals: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run without a cluster."""

    def get(call: Callable[[], Any]) -> Any:
        return call()

    ray = SimpleNamespace(get=get, cluster_resources=lambda: {"CPU": 100.0})
    tracking = SimpleNamespace(take=lambda *_: None, close=lambda _: None)
    monkeypatch.setattr(launch, "ray", ray)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launch, "Tracking", lambda *_, **__: tracking)
    monkeypatch.setattr(launch, "Gauges", lambda _: SimpleNamespace(set=lambda _: None))
    run = Run(tmp_path, signals[0])
    yield run
    run.trainer.ended.set()


@pytest.mark.parametrize("error", [BrokenPipeError(), SystemExit(3)])
def test_what_ends_the_showing_ends_the_run_and_is_raised_where_it_was_started(run: Run, error: BaseException) -> None:
    run.view.broken = error
    run.heard(text="something")
    with pytest.raises(type(error)):
        run.watch.fit()
    assert run.trainer.ended.is_set()


def test_a_fault_of_the_monitor_is_not_taken_for_its_loss(run: Run) -> None:
    run.monitor.faults = [RayTaskError("take", "", ValueError("a mistake")).as_instanceof_cause()]
    with pytest.raises(ValueError) as error:  # noqa: PT011  what Ray says is a traceback
        run.watch.fit()
    assert isinstance(error.value, RayTaskError)


def test_a_monitor_that_is_lost_ends_the_run_which_says_so(run: Run) -> None:
    run.monitor.faults = [AWAY, LOST]
    assert "the process on this node that workers report to has ended" in str(run.watch.fit())
    assert run.watch.how == "lost"


def test_a_run_that_has_said_that_it_is_finished_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.trainer, "fit", lambda: wait_for_end(run))
    run.heard("end", how="finished", rank=0)
    assert run.watch.fit() is None
    assert run.watch.how == "finished"


def test_a_worker_that_failed_has_its_say_and_the_first_one_time_to_finish_a_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.2)
    run.heard("end", how="failed", why="one", rank=1)
    threading.Timer(0.5, lambda: run.heard("end", how="failed", why="zero", rank=0)).start()
    run.watch.fit()
    assert run.watch.failures == ["one", "zero"]


def test_a_finished_run_is_finished_though_the_store_is_away_and_says_in_which_folder_its_checkpoints_are(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(url: str) -> None:
        raise Unreachable(f"{url}: the object store does not answer")

    run.watch.how = "finished"
    monkeypatch.setattr(storage, "delete", away)
    monkeypatch.setattr(storage, "list_files", away)
    assert conclude(run.config, run.view, run.watch, None) == 0
    folder = f"{run.config.run_url}/checkpoints"
    left = f"what Ray Train wrote is left behind: {run.config.run_url}/ray: the object store does not answer"
    lost = f"the checkpoints cannot be listed: {folder}: the object store does not answer"
    assert run.view.shown == [left, lost, f"finished {folder} {folder}"]


def wait_for_end(run: Run) -> None:
    """What `fit` does in a run that ends by itself; its monitor is lost at last."""
    while run.watch.how == "lost":
        run.watch._over.wait(0.01)
    run.monitor.faults = [LOST] * 1000


def test_a_stop_is_asked_for_while_somebody_is_at_work_and_nobody_is_awaited_else(
    run: Run, signals: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(kind: str, **data: Any) -> None:
        nonlocal now
        View.show(run.view, kind, **data)
        if kind == "start":
            signals[1].send(bytes([signal.SIGTERM]))
        else:
            now = 2 * launch.SILENCE_SECONDS

    now = 0.0
    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(run.view, "show", show)
    run.heard("start")
    assert str(run.watch.fit()) == "the controller was killed"
    assert run.monitor.actor.stop_wanted()  # a worker that came now would be told so
    assert run.watch.signals == [signal.SIGTERM]
    assert run.view.shown == ["start", "stopping after this step; a checkpoint is being saved"]
