"""The driver's part in a run: start the workers, show what they say, pass on the wish to stop."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    RaySystemError,
    RpcError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from parrot_dist import storage
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting.tracking import Tracking, curves
from parrot_dist.reporting.view import View
from parrot_dist.training.checkpoint import SETTLE_S
from parrot_dist.training.gauges import Gauges
from parrot_dist.training.lease import Lease
from parrot_dist.training.monitor import Event, Monitor
from parrot_dist.training.prepare import show_end
from parrot_dist.training.pulse import LONGEST_PAUSE_S, Suspect, hanging
from parrot_dist.training.trainer import RAY_FOLDER, Trainer, build_trainer, resources_of

POLL_SECONDS = 0.5  # for a person to look at; signals are heeded at once
SILENCE_SECONDS = 3 * LONGEST_PAUSE_S  # of all ranks: then none is at work
HANG_POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0  # between one worker's failure and the end of all: most fail together, and each has its say
# The monitor does not answer for now; or the cluster is lost, which ends `fit` too.
AWAY = (ActorUnavailableError, LocalRayletDiedError, NodeDiedError, RaySystemError, RpcError)


def launch(config: Config, view: View, lease: Lease) -> int:
    """Run the job of `config` on the cluster that RAY_ADDRESS names, shown by `view`, and return the exit code.

    `lease`: this driver's on the run.

    0: all epochs are done. 128 + signal: stopped, with a checkpoint; at once if no worker had begun, or at a second
    signal. 1: the workers were lost more often than `scale.max_failures`.

    Raises:
        UserError: the data or the settings do not allow it, or another driver has taken the run over.
    """
    with connect(), signals_on_socket() as signals:
        # On the driver's node: anywhere else, the loss of that node would end the driver and not only its workers.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        monitor: Any = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
        watch = Watch(config, monitor, build_trainer(config, monitor, lease.claim), signals, view, lease)
        error = watch.fit()
    return conclude(config, view, watch, error)


def conclude(config: Config, view: View, watch: Watch, error: Exception | None) -> int:
    """Show how the run that `watch` saw end; `error`: what `watch.fit` gave. Returns the exit code, see `launch`.

    Raises:
        UserError: what a person must mend has ended it.
    """
    if watch.failures:
        why = "\n".join(watch.failures)
        show_end(view, config, "failed", why)
        raise UserError(why)
    if watch.how == "finished" and error is None:
        try:
            storage.delete(storage.join(config.run_url, RAY_FOLDER))
        except (UserError, OSError) as failure:  # the store is away: the run is finished all the same
            view.show("warning", text=f"what Ray Train wrote is left behind: {failure}")
        show_end(view, config, "finished")
        return 0
    if watch.signals:
        show_end(view, config, "stopped")
        return 128 + watch.signals[0]
    show_end(view, config, "lost", str(error))
    return 1


def connect() -> Any:
    """The connection to the cluster, closed at the end of a `with` block.

    Raises:
        UserError: nobody is there, or it does not let us in.
    """
    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # Ray itself would try for minutes on end
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        # What workers print goes to Ray's logs; what a person should see comes through the monitor.
        return ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:  # also Ray's ConnectionError
        raise UserError(
            f"RAY_ADDRESS={address}: {error}; check the address, and RAY_AUTH_TOKEN_PATH where the cluster wants a "
            "token; without RAY_ADDRESS a local cluster is started"
        ) from error


@contextmanager
def signals_on_socket() -> Iterator[socket.socket]:
    """Where the numbers of the SIGINTs and SIGTERMs that come can be read, one byte each; nothing else heeds them.

    Python's handlers wait for the main thread, which sits in Ray for up to a second at a time.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writer.fileno())
    with reader, writer:
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


class Watch:
    """The driver's view of a run.

    Attributes:
        how: how the workers ended: finished, stopped or failed; lost as long as they have not said so.
        failures: what they said that a person must mend.
        signals: the numbers of the signals that came.
    """

    def __init__(
        self, config: Config, monitor: Any, trainer: Trainer, inbox: socket.socket, view: View, lease: Lease
    ) -> None:
        self.how = "lost"
        self.failures: list[str] = []
        self.signals: list[int] = []
        self._config, self._monitor, self._trainer, self._inbox, self._view = config, monitor, trainer, inbox, view
        self._tracking = Tracking(config, warn=lambda text: view.show("warning", text=text))
        self._gauges = Gauges(config.name)
        self._over = threading.Event()
        self._begun = self._stopping = False
        self._loss: Exception | None = None
        self._fault: BaseException | None = None
        self._lease = lease
        self._end_at = float("inf")
        self._looked_at = 0.0

    def fit(self) -> Exception | None:
        """Train; meanwhile show events and pass on signals. Returns what has ended the run, if not its workers.

        Raises whatever went wrong while events were shown: the run has ended then.
        """
        self._say_what_is_lacking()
        thread = threading.Thread(target=self._follow)
        thread.start()
        error: Exception | None = None
        try:
            self._trainer.fit()  # in the main thread, where it asks whether it may heed SIGINT
        except Exception as raised:
            error = raised
        finally:
            self._over.set()
            thread.join()
            self._tracking.close(self.how == "finished")
            self._view.close()
        if self._fault is not None:
            raise self._fault
        return error if self._loss is None or self.how == "finished" else self._loss

    def _follow(self) -> None:
        """Look at the run until it is over. It ends with whatever ends this: nobody would stop it, or what hangs."""
        try:
            while not self._over.is_set():
                with suppress(*AWAY):
                    self._look()
            with suppress(*AWAY):
                self._show_events()
        except ActorDiedError as error:
            self._loss = RuntimeError(f"the process on this node that workers report to has ended: {error}")
        except BaseException as error:
            self._fault = error
        while not self._over.wait(POLL_SECONDS):
            with suppress(Exception):  # the cluster is lost, which ends `fit` too
                self._trainer.give_up()

    def _look(self) -> None:
        if select.select([self._inbox], [], [], POLL_SECONDS)[0]:
            self.signals.append(self._inbox.recv(1)[0])
        self._heed_signals()
        if time.monotonic() > self._end_at:
            self._trainer.give_up()
        self._show_events()
        self._end_what_hangs()
        if self._lease.lost:
            self._fail(self._lease.lost, GRACE_SECONDS)

    def _heed_signals(self) -> None:
        """Ask for a last checkpoint; at a second signal, and where nobody is at work that could save one, end the run.

        Workers that were lost are not awaited: they could save nothing that is not there.
        """
        if not self.signals:
            return
        if len(self.signals) > 1 or not self._at_work():
            self._trainer.give_up()
        elif not self._stopping:
            ray.get(self._monitor.stop.remote())
            self._stopping = True
            self._view.show("message", text="stopping after this step; a checkpoint is being saved")

    def _at_work(self) -> bool:
        return self._begun and ray.get(self._monitor.silence.remote()) < SILENCE_SECONDS

    def _end_what_hangs(self) -> None:
        """End the process of a rank that hangs: then Ray Train sees a lost worker, and starts all of them anew."""
        seconds, now = self._config.scale.hang_seconds, time.monotonic()
        if not seconds or now - self._looked_at < HANG_POLL_SECONDS:
            return
        self._looked_at = now
        found: list[Suspect] = ray.get(self._monitor.suspects.remote(seconds))
        for suspect in hanging(found):
            self._view.show("warning", text=f"{suspect} for {seconds:g} s (scale.hang_seconds); starting anew")
            ray.kill(suspect.beat.worker)
        for suspect in found:
            ray.get(self._monitor.forget.remote(suspect.beat.rank))

    def _show_events(self) -> None:
        for event in ray.get(self._monitor.take.remote()):
            self._begun = True
            self._show(event)

    def _show(self, event: Event) -> None:
        if event.kind != "end":
            self._view.show(event.kind, **event.data)
            self._tracking.take(event.kind, event.data)
            self._gauges.set(curves(event.kind, event.data))
            return
        self.how = event.data["how"]
        if event.data.get("why"):
            # The first rank may still have to wait for a checkpoint that it is saving.
            self._fail(event.data["why"], GRACE_SECONDS if event.data["rank"] == 0 else SETTLE_S + GRACE_SECONDS)

    def _fail(self, why: str, grace_s: float) -> None:
        if why not in self.failures:
            self.failures.append(why)
        self._end_at = min(self._end_at, time.monotonic() + grace_s)

    def _say_what_is_lacking(self) -> None:
        scale = self._config.scale
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        workers = scale.min_workers or scale.num_workers
        for name, need in resources_of(scale, workers).items():
            has = there.get(name, 0)
            if has < need:
                lacking = f"waiting until the cluster has {need:g} {name}s for {workers} workers; it has {has:g}"
                self._view.show("warning", text=lacking)
