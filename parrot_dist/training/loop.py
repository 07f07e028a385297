"""The training of a run: step by step, to the end or to a wish to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parrot_dist import configuration
from parrot_dist.config import Config
from parrot_dist.data.plan import EpochPlan
from parrot_dist.data.stream import Skipped, Source
from parrot_dist.errors import UserError
from parrot_dist.fusion import row_keys
from parrot_dist.reporting.history import EpochRecord
from parrot_dist.reporting.metrics import DIGITS, score
from parrot_dist.training.checkpoint import Found, Manifest, Writer, unfenced
from parrot_dist.training.clock import Clock
from parrot_dist.training.inference import Batch, Item, Place, Stopped, infer, open_stream
from parrot_dist.training.model import CONFIG_PART, REFERENCE_PART, ParrotModel, describe_encoders, lacks_reference
from parrot_dist.training.monitor import Listener
from parrot_dist.training.optimizer import build_optimizer
from parrot_dist.training.parallel import next_or_error, rehearse, wrap
from parrot_dist.training.precision import autocast
from parrot_dist.training.reference import embed_reference, fit_and_dump
from parrot_dist.training.snapshot import Snapshot, State, restore
from parrot_dist.training.task import Task

NON_FINITE_SHARE = 0.1  # of an epoch's steps: a run that leaves out more is not the one that was asked for
STEP_REPORT_SECONDS = 0.5  # as often as the driver looks
NOTICE_SECONDS = 5.0  # between two questions for a notice, and so between two checkpoints after it; as Ray Train asks


class Loop:
    """The training of one rank. All ranks make the same calls in the same order."""

    def __init__(
        self,
        task: Task,
        model: ParrotModel,
        feed: Callable[[], Mapping[str, Source[Item]]],
        place: Place,
        reporter: Listener,
        on_epoch: Callable[[EpochRecord], None],
        fence: Callable[[], None] = unfenced,
    ) -> None:
        """`feed`: gives each branch of `model` what it reads as far as it is frozen when this is called; `on_epoch` may
        wait for all ranks.
        """
        self.task, self.model, self.feed, self.place = task, model, feed, place
        self.reporter, self.on_epoch = reporter, on_epoch
        self.config: Config = task.config
        self.config_part = configuration.dumps(self.config).encode()
        self.network: nn.Module = model
        self.feeds: Mapping[str, Source[Item]] = {}
        self.optimizer = build_optimizer(model, self.config)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.config.optim.precision == "fp16")
        self.state = State()
        self.clock = Clock()
        self.writer = Writer(
            self.config.run_url, self.config.checkpoint.keep, partial(reporter.put, "checkpoint"), fence
        )
        self.saved: int | None = None  # the step of the newest checkpoint
        self.named: set[str] = set()
        self.notice: str | None = None  # the newest, of machines that will be taken away
        self.asked = self.reported = 0.0

    def run(self, found: Found | None) -> None:
        """Train from `found` (None: from the beginning) to the end.

        Raises:
            Stopped: the driver asked for it.
            UserError: the data or the numbers do not allow to go on.
        """
        try:
            self._run(found)
        except UserError:
            self.writer.settle()  # all workers end soon after this one
            raise

    def _run(self, found: Found | None) -> None:
        if found is not None:
            self._choose(self._due(found.manifest.last_epoch))
            self.state = restore(found, self.model, self.optimizer, self.scaler)
            self.saved = found.manifest.step
        entered, at_last = None, self._due(self.config.optim.epochs)
        if at_last != self._due(self.state.epoch):  # what is wrong with it shall show now, and not when it is due
            self._choose(at_last)
            rehearse(self.network, self.model, self.place, self.config.optim.precision)
        if found is not None and lacks_reference(found, self.model):
            entered = self._due(found.manifest.last_epoch)
            self._enter(entered)
            self._add_reference(self._look_up, found.url)
        while not self.finished:
            unfrozen = self._due(self.state.epoch)
            if unfrozen != entered:
                self._enter(unfrozen)
                entered = unfrozen
            self._train_epoch()
            self._end_epoch()
        self.writer.wait()

    def _due(self, epoch: int) -> dict[str, str]:
        """What epoch `epoch`, counted from 0, trains of the encoders that are there."""
        unfrozen = self.config.encoders.unfrozen(epoch)
        return {branch: unfrozen[branch] for branch, _ in self.model.branches()}

    def _enter(self, unfrozen: Mapping[str, str]) -> None:
        """Make ready for epochs that train this of the encoders: what feeds them and DDP's buckets follow from it.

        A run that resumes here goes the same way, and so gets the same bits.

        Raises:
            Stopped: the driver asked for it.
            UserError: see `rehearse`.
        """
        self.reporter.at(None)
        self._choose(unfrozen)
        if self.place.rank == 0:
            parts = [f"{branch} {what}" for branch, what in unfrozen.items()]
            self.reporter.put("message", text=f"trained of the encoders: {', '.join(parts)}")
        self.writer.wait()  # a stop while frozen work is done shall lose nothing
        self.feeds = {}  # which the new ones need not find in memory
        self.feeds = self.feed()
        self.network = wrap(self.model, self.place)
        rehearse(self.network, self.model, self.place, self.config.optim.precision)

    def _choose(self, unfrozen: Mapping[str, str]) -> None:
        """Let the optimiser have the head and this of the encoders; it keeps what it knows of what it had."""
        self.model.unfreeze(unfrozen)
        self.trained = list(self.model.trained().values())  # a walk over all modules, too long for every step
        known, self.optimizer = self.optimizer.state, build_optimizer(self.model, self.config)
        self.optimizer.state.update(known)

    @property
    def finished(self) -> bool:
        """All epochs are done, or the validation UAR has not risen for `optim.patience` of them."""
        # Rounded, as where the best checkpoint is chosen: sums in another order do not make a score better.
        optim, uars = self.config.optim, [round(record.uar, DIGITS) for record in self.state.history]
        waited = len(uars) - 1 - int(np.argmax(uars)) if uars else 0
        return self.state.epoch >= optim.epochs or 0 < optim.patience <= waited

    def _train_epoch(self) -> None:
        self.clock = Clock()
        self.model.train()
        plan = self.task.training_plan(self.state.epoch)
        augmentation = self.task.augmentation(self.state.epoch)
        batches = open_stream(self.task, self.feeds, plan, self.place, self.state.epoch_step, augmentation)
        for epoch_step in range(self.state.epoch_step, plan.steps):
            self.reporter.at(self.state.step)
            began = time.perf_counter()
            batch = next_or_error(batches)
            self.clock.waited += time.perf_counter() - began
            sizes = self._agree(batch, plan)
            if isinstance(batch, Batch) and any(sizes):
                self._step(batch, sizes, plan, epoch_step)
            self.state.step += 1
            self.state.epoch_step = epoch_step + 1
            every = self.config.checkpoint.every_steps
            if every and self.state.step % every == 0 and self.state.epoch_step < plan.steps:
                self.save(score=None)
        self.clock.trained = time.perf_counter() - self.clock.began

    def _agree(self, batch: Batch | UserError, plan: EpochPlan) -> list[int]:
        """The rows of every rank in this step, once no rank has a reason to leave: all leave together or none."""
        failure = str(batch) if isinstance(batch, UserError) else None
        skipped = batch.skipped if isinstance(batch, Batch) else []
        self._name(skipped)
        stop = self.place.rank == 0 and self.reporter.stop_wanted()
        size = len(batch.rows) if isinstance(batch, Batch) else 0
        ask = self.place.rank == 0 and time.monotonic() - self.asked > NOTICE_SECONDS
        facts = self.place.exchange([size, len(skipped), failure is not None, stop, ask])
        rows, broken, failed, stopped, asked = facts.T
        if failed.any():
            raise UserError(next(text for text in self.place.collect(failure) if text))
        if stopped.any():
            self._leave()
        if asked.any():
            self._heed_notice()
        self.state.skipped += int(broken.sum())
        if self.task.too_many(self.state.skipped, len(plan.order)):
            names = [name for part in self.place.collect(self.named) for name in part]
            raise UserError(self.task.complaint(self.state.skipped, len(plan.order), names))
        sizes: list[int] = rows.tolist()
        return sizes

    def _leave(self) -> NoReturn:
        self.save(score=None, hurry=True)
        self.writer.wait()
        raise Stopped

    def _heed_notice(self) -> None:
        """If machines of the run will be taken away, save what it takes to go on; every rank asks.

        Reference rows are not in it, for there may be no time: they are added when the run goes on from there.
        """
        self.asked, notice = time.monotonic(), self.reporter.notice()
        if notice is None or self.place.rank != 0:
            return
        if notice != self.notice:
            self.notice = notice
            self.reporter.put("warning", text=f"{notice}; until then a checkpoint every {NOTICE_SECONDS:g} s")
        if self.saved != self.state.step and not self.writer.busy:
            self._write(None, None, time.perf_counter())

    def _look_up(self, heed: bool = True) -> bool:
        """Show that this rank gets on; and whether the driver asks to stop, where that is to be heeded."""
        self.reporter.at(self.state.step)
        return heed and self.place.rank == 0 and self.reporter.stop_wanted()

    def _name(self, skipped: list[Skipped]) -> None:
        """Tell of samples that cannot be read, of each once."""
        for one in skipped:
            if one.key not in self.named:
                self.named.add(one.key)
                self.reporter.put("warning", text=f"skipped {one.key}: {one.reason}")

    def _step(self, batch: Batch, sizes: list[int], plan: EpochPlan, epoch_step: int) -> None:
        labels = torch.from_numpy(self.task.labels[batch.rows.numpy()]).to(self.place.device)
        keys = row_keys(self.config.seed, self.state.step, batch.draws).to(self.place.device)
        with autocast(self.config.optim.precision, self.place.device):
            logits = self.network(batch.inputs, keys, sizes)
        # DDP averages over ranks what has to be a mean over the rows of all of them.
        loss = F.cross_entropy(logits, labels, reduction="sum") * (self.place.world_size / sum(sizes))
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        value = self._check(loss, plan, epoch_step)
        if value is not None:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if value is not None:
            self._account(value, sum(sizes), plan, epoch_step)

    def _check(self, loss: Tensor, plan: EpochPlan, epoch_step: int) -> float | None:
        """The loss of the global batch; None, on all ranks, if it or a gradient is not finite. Clips the gradients."""
        self.scaler.unscale_(self.optimizer)
        clip = self.config.optim.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.trained, clip if clip > 0 else float("inf"))
        value = self.place.mean(loss.detach())
        # Loss scaling meets infinite gradients on purpose, and skips their step.
        if np.isfinite(value) and (self.scaler.is_enabled() or torch.isfinite(norm)):
            return value
        keys = self.task.index.key[plan.global_batch(epoch_step)]
        self._leave_out(
            f"the loss of step {self.state.step} is {value} and its gradient's norm {float(norm)}; "
            f"the batch was {', '.join(map(str, keys))}",
            plan.steps,
        )
        return None

    def _leave_out(self, what: str, steps: int) -> None:
        """Count and tell of a step whose numbers are not finite, out of the epoch's `steps`.

        Raises:
            UserError: there must be none, or there have been too many.
        """
        if self.config.optim.non_finite == "stop":
            raise UserError(what)
        self.state.non_finite += 1
        most = max(1, int(NON_FINITE_SHARE * steps))
        if self.state.non_finite > most:
            raise UserError(f"optim.non_finite: more than {most} of the {steps} steps of an epoch; the last: {what}")
        if self.place.rank == 0:
            self.reporter.put("warning", text=f"left out: {what}")

    def _account(self, loss: float, rows: int, plan: EpochPlan, epoch_step: int) -> None:
        self.state.loss_sum += loss * rows
        self.state.seen += rows
        self.clock.utterances += rows
        error = self.model.head.marginal_error
        if error is not None:
            self.state.marginal_error = max(self.state.marginal_error, float(error))
        now = time.perf_counter()
        if self.place.rank == 0 and now - self.reported > STEP_REPORT_SECONDS:
            self.reported = now
            self.reporter.put(
                "step",
                epoch=self.state.epoch + 1,
                step=epoch_step + 1,
                steps=plan.steps,
                loss=self.state.loss_sum / self.state.seen,
                rate=self.clock.utterances / (now - self.clock.began),
                data_wait=self.clock.waited / (now - self.clock.began),
                marginal_error=None if error is None else float(error),
            )

    def _end_epoch(self) -> None:
        self._heed_notice()  # while it is validated nobody asks
        record = self._validate()
        if record is None:  # all steps of the epoch are taken: what goes on from here begins by validating it
            self._leave()
        self.state.close_epoch(record)
        try:
            self.save(score=record.uar)
        except Stopped:  # on all ranks
            self.on_epoch(record)
            raise
        finally:  # also where this is the last that is done
            if self.place.rank == 0:
                self.reporter.put("epoch", **asdict(record))
        self.on_epoch(record)

    def _validate(self) -> EpochRecord | None:
        """What the epoch came to; None if the driver asked to stop."""
        self.model.eval()
        try:
            rows, logits, skipped = infer(
                self.task,
                self.feeds,
                self.task.parts.validation,
                self.place,
                lambda inputs, sizes: self.model(inputs, None, sizes),
                stop_wanted=self._look_up,
            )
        except Stopped:
            return None
        self._name(skipped if self.place.rank == 0 else [])
        self.task.refuse_broken(skipped, len(self.task.parts.validation))
        labels = self.task.labels[rows]
        scores = score(labels, logits.argmax(1), len(self.config.data.classes))
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
        trained = max(self.clock.trained, 1e-9)
        waited = float(np.mean(self.place.collect(self.clock.waited)))
        return EpochRecord(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            train_loss=self.state.loss_sum / max(self.state.seen, 1),
            val_loss=float(loss),
            accuracy=scores.accuracy,
            uar=scores.uar,
            macro_f1=scores.macro_f1,
            utterances_per_second=self.clock.utterances / trained,
            data_wait=waited / trained,
            seconds=time.perf_counter() - self.clock.began,
            marginal_error=None if self.model.head.marginal_error is None else self.state.marginal_error,
            non_finite=self.state.non_finite,
        )

    def save(self, score: float | None, hurry: bool = False) -> None:
        """Start a checkpoint of what is now, unless there is one; every rank calls, the first one writes.

        In a `hurry`, or if the driver asks to stop meanwhile, what it takes to go on is complete before there are rows.

        Raises:
            Stopped: the driver asked for it while the reference rows were computed; they are there all the same.
        """
        if score is None and self.saved == self.state.step:
            return  # what is there is as good, and at an epoch's end better
        self.saved = self.state.step
        began = time.perf_counter()
        rows, stopped = None, False
        try:
            rows = None if hurry else self._embed_reference(self._look_up)
        except Stopped:
            stopped = True
        if self.place.rank == 0:
            self._write(score, rows, began)
        if hurry or stopped:
            self.writer.wait()
            self._add_reference(partial(self._look_up, heed=False))
        if stopped:
            raise Stopped

    def _add_reference(self, stop_wanted: Callable[[], bool], url: str | None = None) -> None:
        """Add the reference rows to the complete checkpoint at `url`, or to what is being saved."""
        rows = self._embed_reference(stop_wanted)
        if rows is not None:
            self.writer.add(REFERENCE_PART, fit_and_dump(rows, self.config.fusion), url)

    def _embed_reference(self, stop_wanted: Callable[[], bool]) -> tuple[Tensor, Tensor] | None:
        return embed_reference(self.task, self.feeds, self.model, self.place, stop_wanted)

    def _write(self, score: float | None, rows: tuple[Tensor, Tensor] | None, began: float) -> None:
        manifest = Manifest(
            step=self.state.step,
            epoch=self.state.epoch,
            epoch_step=self.state.epoch_step,
            score=score,
            finished=self.finished,
            classes=list(self.config.data.classes),
            encoders=describe_encoders(self.model),
            index_digest=self.task.index.digest,
        )
        self.writer.wait()  # first, so that there is only one copy at a time
        snapshot = Snapshot.take(self.state, self.model, self.optimizer, self.scaler)

        def dump() -> dict[str, bytes]:
            parts = snapshot.dump() | {CONFIG_PART: self.config_part}
            return parts if rows is None else parts | {REFERENCE_PART: fit_and_dump(rows, self.config.fusion)}

        self.writer.save(manifest, dump, began)
