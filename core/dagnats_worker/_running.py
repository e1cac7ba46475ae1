"""A worker that runs: everything that exists only between start and stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dagnats_worker._cancellation import Cancellations
from dagnats_worker._child_scopes import PluginScope, child_scopes
from dagnats_worker._counters import Counters
from dagnats_worker._ending import RUNS_STREAM
from dagnats_worker._events import Events
from dagnats_worker._executors import Executors
from dagnats_worker._facade import Facade
from dagnats_worker._health import Vitals
from dagnats_worker._hook_clock import HookClock
from dagnats_worker._inflight import Ending, Held
from dagnats_worker._intake import Intake
from dagnats_worker._plugin_source import PluginSource
from dagnats_worker._plugins import Hooks
from dagnats_worker._registry import Registry
from dagnats_worker._serving import Serving
from dagnats_worker._slots import WorkerSlots
from dagnats_worker._sources import REQUIRED_STREAMS
from dagnats_worker._supervisor import Supervisor
from dagnats_worker._transport import Source, Transport
from dagnats_worker._watchdog import Watchdog, code_of
from dagnats_worker.errors import CapabilityMissingError, StartError
from dagnats_worker.hookspecs import Stats

if TYPE_CHECKING:
    from dagnats_worker._worker import Worker

logger = logging.getLogger("dagnats_worker.worker")

CUT_WAIT_S = 2.0


class RunningWorker:
    """What a worker is made of while it runs."""

    def __init__(
        self, worker: Worker, registry: Registry, hooks: Hooks, transport: Transport
    ) -> None:
        self._worker = worker
        self._config = worker.config
        self._registry = registry
        self._served = [
            (registration, group)
            for registration in registry.all
            for group in (worker.groups or (None,))
        ]
        self._hooks = hooks
        self._transport = transport
        self._counters = Counters()
        self._held = Held()
        self._slots = WorkerSlots(worker.max_tasks)
        self._cancellations = Cancellations(transport, worker.config)
        self._executors = Executors(
            threads_max=worker.max_tasks + worker.config.threads_extra,
            processes_max=worker.config.processes_max,
            child_scopes=self._child_scopes(),
        )
        self._intakes: list[Intake] = []
        self._supervisor: Supervisor | None = None
        self._hook_clock: HookClock | None = None
        self._watchdog: Watchdog | None = None
        self._scopes = AsyncExitStack()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None
        self._unbegun: list[Source] = []
        self._forced = asyncio.Event()
        self.drained = True
        self.facade = self._facade()
        self._serving = self._serving_all()

    def _facade(self) -> Facade:
        worker = self._worker
        return Facade(
            worker_id=worker.worker_id,
            groups=worker.groups,
            partitions=worker.partitions,
            max_tasks=worker.max_tasks,
            task_types=tuple(one.for_group(group) for one, group in self._served),
            hooks=self._hooks,
            transport=self._transport,
            stats=self.stats,
        )

    def _serving_all(self) -> Serving:
        worker_id = self._worker.worker_id
        transport, config, counters = self._transport, self._config, self._counters
        return Serving(
            transport=transport,
            config=config,
            hooks=self._hooks,
            facade=self.facade,
            events=Events(transport, self._hooks, config, counters, worker_id),
            executors=self._executors,
            cancellations=self._cancellations,
            counters=counters,
            held=self._held,
            slots=self._slots,
            on_bug=self._on_bug,
        )

    def _child_scopes(self) -> Sequence[PluginScope]:
        if all(one.handler.executor != "process" for one in self._registry.all):
            return ()
        return child_scopes(self._hooks.child_scope)

    # ------------------------------------------------------------------ start

    async def start(self) -> None:
        await self._check_streams()
        self._watch()
        await self._enter_worker_scopes()
        self._check_needs()
        for registration, group in self._served:
            self._unbegun.append(await self._serving.open(registration, group))
        sticky = await self._serving.open_sticky(
            registration
            for (registration, _), source in zip(self._served, self._unbegun, strict=True)
            if not isinstance(source, PluginSource)
        )
        for registration, group in self._served:
            source = self._unbegun.pop(0)
            own = sticky.get(registration.task_type)
            self._intakes += self._serving.begin(registration, group, source, own)
        await self.facade.enter("running")

    def _watch(self) -> None:
        """Begin to look at everything that is to come."""
        config = self._config
        if self._hooks.members:
            self._hook_clock = HookClock(
                config.hook_timeout, lambda: (*self._hooks.callers, *self._held)
            )
        handlers = {
            code: one.task_type
            for one in self._registry.all
            if (code := code_of(one.handler.function)) is not None
        }
        self._watchdog = Watchdog(
            config.loop_lag_warning,
            self._held,
            self._hooks,
            handlers,
            self.facade.background.describe,
        )
        self._supervisor = Supervisor(
            self._transport,
            self._held,
            self._cancellations,
            config,
            self._counters,
            watchdog=self._watchdog,
            worker_id=self._worker.worker_id,
            shortest_timeout_s=min(one.timeout.total_seconds() for one in self._registry.all),
        )
        self._worker.health.attach(self._vitals(self._watchdog))

    def _vitals(self, watchdog: Watchdog) -> Vitals:
        return Vitals(
            facade=self.facade,
            transport=self._transport,
            watchdog=watchdog,
            intakes=self._intakes,
            counters=self._counters,
            slots_in_use=lambda: self._slots.gate.inside,
            abandoned=lambda: self._executors.abandoned,
            loop=asyncio.get_running_loop(),
        )

    async def _enter_worker_scopes(self) -> None:
        hooks = self._hooks
        if not hooks.worker_scope:
            return
        await self._scopes.enter_async_context(
            hooks.scope(hooks.worker_scope, removes=True, worker=self.facade)
        )
        for member in hooks.members:
            if member.state != "active":
                await self.facade.forget(member.name)

    async def _check_streams(self) -> None:
        for stream in REQUIRED_STREAMS:
            if not await self._transport.has_stream(stream):
                raise StartError(
                    f"stream {stream} not found; start the engine, or create the streams with "
                    "`dagnats-worker setup`"
                )
        self._cancellations.with_engine = await self._transport.has_stream(RUNS_STREAM)

    def _check_needs(self) -> None:
        for registration in self._registry.all:
            for capability in registration.needs:
                if capability not in self.facade.capabilities:
                    raise CapabilityMissingError(
                        f"task type {registration.task_type!r} needs {capability.name!r}, and no "
                        f"plugin provides it: pip install '{capability.install}'"
                    )

    def _on_bug(self, error: BaseException) -> None:
        logger.error("this should not happen; the worker stops", exc_info=error)
        if not self._broken.done():
            self._broken.set_result(f"{type(error).__name__}: {error}")

    async def broken(self) -> str:
        """Return, with the reason, when the worker cannot go on."""
        closed = self._transport.closed
        ends: set[asyncio.Future[str]] = {closed, self._broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return closed.result() if closed.done() else self._broken.result()

    # ------------------------------------------------------------------ stop

    async def stop(self, timeout: timedelta) -> None:
        """Drain once, however often it is asked for."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(timeout), name="dagnats-worker drain")
        await asyncio.shield(self._stopping)

    async def _stop(self, timeout: timedelta) -> None:
        self.facade.drain_ends_at = time.monotonic() + timeout.total_seconds()
        await self.facade.enter("draining")
        await _each("giving back what waits", *(intake.drain() for intake in self._intakes))
        await self._wait_for_handlers(timeout.total_seconds())
        await self._close()

    async def _wait_for_handlers(self, within_s: float) -> None:
        if await self._all_ended(within_s):
            return
        self.drained = False
        if not self._forced.is_set():
            logger.warning(
                "%d handlers still run after %g s; ending them", len(self._held), within_s
            )
            for inflight in self._held:
                inflight.interrupt(Ending.DRAIN)
            if await self._all_ended(CUT_WAIT_S):
                return
        for intake in self._intakes:
            intake.cut()
        self._forced.clear()
        await self._all_ended(CUT_WAIT_S)

    async def _all_ended(self, within_s: float) -> bool:
        """Wait for the handlers, unless the end is forced meanwhile."""
        ends = asyncio.gather(*(intake.wait(within_s) for intake in self._intakes))
        forced = asyncio.create_task(self._forced.wait())
        either: set[asyncio.Future[Any]] = {ends, forced}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return ends.done() and all(ends.result())
        finally:
            ends.cancel()
            forced.cancel()
            await asyncio.gather(ends, forced, return_exceptions=True)

    async def cut(self) -> None:
        """End a drain at once: what still runs is cancelled, and its messages are given back."""
        self._forced.set()
        self.facade.drain_ends_at = time.monotonic()
        if self._stopping is not None:
            await asyncio.shield(self._stopping)

    async def abort(self) -> None:
        """Undo a start that has failed half-way."""
        await _each("giving back what waits", *(intake.drain() for intake in self._intakes))
        await self._close()

    async def _close(self) -> None:
        await _each("closing", *(intake.close() for intake in self._intakes))
        await _each("stopping", *(source.stop() for source in self._unbegun))
        await _each("closing", *(source.close() for source in self._unbegun))
        await self._scopes.aclose()
        await self.facade.close()
        if self._hook_clock is not None:
            await self._hook_clock.close()
        await self._executors.close(CUT_WAIT_S)
        if self._supervisor is not None:
            await self._supervisor.close()
        if self._transport.connected:
            await self._transport.flush()
        if self._watchdog is not None:
            self._watchdog.close()
        await self._transport.close()
        await self.facade.enter("stopped")

    # ------------------------------------------------------------------ looking at it

    def handling(self) -> tuple[str, ...]:
        """The task types of the handlers that run now."""
        return tuple(
            inflight.execution.environment.task_type.name
            for inflight in self._held
            if inflight.execution is not None and inflight.started_at
        )

    def stats(self) -> Stats:
        counters = self._counters
        lag_s = self._supervisor.worst_lag_s() if self._supervisor is not None else 0.0
        return Stats(
            delivered=counters.delivered,
            redelivered=counters.redelivered,
            completed=counters.completed,
            failed=counters.failed,
            retried=counters.retried,
            released=counters.released,
            skipped=counters.skipped,
            skipped_cancelled=counters.skipped_cancelled,
            rejected=counters.rejected,
            renewals=self._transport.leases.renewals,
            publish_retries=counters.publish_retries,
            slots_in_use=self._slots.gate.inside,
            abandoned=self._executors.abandoned,
            loop_lag_s=lag_s,
        )


async def _each(what: str, *steps: Awaitable[None]) -> None:
    """Do all of it at once; what fails is logged and keeps nothing else from being done."""
    for failed in await asyncio.gather(*steps, return_exceptions=True):
        if failed is not None:
            logger.error("%s a source failed", what, exc_info=failed)
