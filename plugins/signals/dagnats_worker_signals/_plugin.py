"""The plugin: what it opens for a worker, and what it does when a step has ended."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dagnats_worker import (
    SIGNALS,
    BaseContext,
    Completed,
    Continued,
    Failed,
    Outcome,
    Plugin,
    TaskContext,
    hookimpl,
)
from dagnats_worker.errors import KeyValueError, StartError, TransportError
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_signals._parking import Parking, jetstream_of
from dagnats_worker_signals._settings import SignalsSettings
from dagnats_worker_signals._signals import Shared, TaskSignals
from dagnats_worker_signals._waking import Waker
from dagnats_worker_signals._watch import SignalWatch

logger = logging.getLogger("dagnats_worker_signals")

SIGNALS_BUCKET = "signals"
PARKED_BUCKET = "parked_tasks"


class SignalsPlugin(Plugin[SignalsSettings]):
    """Lets handlers send signals and wait for them, and wakes tasks that wait without a slot."""

    name = "signals"
    settings_type = SignalsSettings
    provides = (SIGNALS,)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        signals, tasks = worker.kv(SIGNALS_BUCKET), worker.kv(PARKED_BUCKET)
        watch = SignalWatch(signals)
        parking = Parking(worker, tasks, self.settings.parked_max)
        shared = Shared(worker, signals, watch, parking, self.settings.consume)

        def provided(ctx: BaseContext) -> TaskSignals:
            return TaskSignals(ctx, shared)

        worker.provide(SIGNALS, provided)
        js = jetstream_of(worker)
        if js is not None:
            await _make_bucket(worker)
            waker = Waker(
                worker,
                js,
                parking,
                watch,
                signals=signals,
                tasks=tasks,
                sweep_every_s=self.settings.sweep_every.total_seconds(),
            )
            worker.spawn(waker.follow, "parked tasks")
            worker.spawn(waker.run, "parked tasks that are due")
            worker.spawn(waker.sweep, "sweep of parked tasks")
        worker.spawn(watch.run, "signals")
        yield

    @hookimpl
    async def on_complete(self, ctx: TaskContext, outcome: Outcome) -> None:
        """Delete what the step has received, where that is wanted."""
        if not self.settings.consume or not isinstance(outcome, Completed | Continued | Failed):
            return
        signals = ctx.use(SIGNALS)
        if isinstance(signals, TaskSignals):
            try:
                await signals.forget()
            except KeyValueError as error:
                ctx.log.warning("a signal that was received stays: %s", error)


async def _make_bucket(worker: WorkerFacade) -> None:
    """Have the bucket of parked tasks, which no engine makes; without it only parking fails."""
    try:
        await worker.create_kv(PARKED_BUCKET)
    except (StartError, TransportError) as error:
        logger.warning("no task can be parked: %s", error)
