"""A worker that runs: everything that exists only between start and stop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker._arrival import Arrivals
from dagnats_worker._cancellation import Cancellations
from dagnats_worker._counters import Counters
from dagnats_worker._dead_letters import DeadLetters
from dagnats_worker._dispatcher import Dispatcher
from dagnats_worker._ending import RUNS_STREAM
from dagnats_worker._events import Events
from dagnats_worker._execution import Environment
from dagnats_worker._executors import Executors
from dagnats_worker._facade import Facade
from dagnats_worker._inflight import Ending, Held
from dagnats_worker._intake import Intake
from dagnats_worker._plugins import Hooks
from dagnats_worker._registry import Registration, Registry
from dagnats_worker._run_handler import HandlerRunner
from dagnats_worker._slots import Gate, Slots, WorkerSlots
from dagnats_worker._sources import REQUIRED_STREAMS, STICKY_STREAM, open_sticky, open_tasks
from dagnats_worker._supervisor import Supervisor
from dagnats_worker._transport import Source, Transport
from dagnats_worker.errors import CapabilityMissingError, StartError
from dagnats_worker.hookspecs import PluginState, Stats, TaskType

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
        self._hooks = hooks
        self._transport = transport
        self._counters = Counters()
        self._held = Held()
        self._slots = WorkerSlots(worker.max_tasks)
        self._cancellations = Cancellations(transport, worker.config)
        self._events = Events(transport, hooks, worker.config, self._counters, worker.worker_id)
        self._executors = Executors(
            threads_max=worker.max_tasks + worker.config.threads_extra,
            processes_max=worker.config.processes_max,
        )
        self._intakes: list[Intake] = []
        self._supervisor: Supervisor | None = None
        self._scopes = AsyncExitStack()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None
        self.drained = True
        self.facade = Facade(
            worker_id=worker.worker_id,
            groups=worker.groups,
            partitions=worker.partitions,
            max_tasks=worker.max_tasks,
            task_types=tuple(
                registration.for_group(group)
                for registration in registry.all
                for group in (worker.groups or (None,))
            ),
            plugins=tuple(PluginState(plugin.name, "", "active") for plugin in hooks.plugins),
            transport=transport,
            stats=self.stats,
        )

    # ------------------------------------------------------------------ start

    async def start(self) -> None:
        await self._check_streams()
        if self._hooks.worker_scope:
            scope = self._hooks.scope(self._hooks.worker_scope, worker=self.facade)
            await self._scopes.enter_async_context(scope)
        self._check_needs()
        sources = [
            (registration, group, await self._open(registration, group))
            for registration in self._registry.all
            for group in (self._worker.groups or (None,))
        ]
        sticky = await self._open_sticky()
        for registration, group, source in sources:
            self._begin(registration, group, source, sticky.get(registration.task_type))
        self._supervisor = Supervisor(
            self._transport,
            self._held,
            self._cancellations,
            self._config,
            self._counters,
            worker_id=self._worker.worker_id,
            shortest_timeout_s=min(
                registration.timeout.total_seconds() for registration in self._registry.all
            ),
        )
        await self.facade.enter("running")

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

    async def _open(self, registration: Registration, group: str | None) -> Source:
        task = registration.for_group(group)
        for implementation in self._hooks.open_source:
            source = await self._hooks.answer(implementation, worker=self.facade, task=task)
            if source is not None:
                opened: Source = source
                return opened
        return await open_tasks(self._transport, registration, group)

    async def _open_sticky(self) -> dict[str, Source]:
        """Sticky tasks come to workers without groups and partitions, where the stream exists."""
        if self._worker.groups or self._worker.partitions:
            return {}
        if not await self._transport.has_stream(STICKY_STREAM):
            return {}
        return {
            registration.task_type: await open_sticky(
                self._transport, registration, self._worker.worker_id
            )
            for registration in self._registry.all
        }

    def _begin(
        self, registration: Registration, group: str | None, source: Source, sticky: Source | None
    ) -> None:
        gate = Gate(registration.concurrency)
        task = registration.for_group(group)
        slots = Slots(self._slots, gate)
        self._intakes.append(self._intake(registration, task, source, slots, reads_history=False))
        if sticky is not None:
            # Its stream keeps what was acked, so a task may have been run before.
            slots = Slots(self._slots, gate, only_idle=True)
            self._intakes.append(
                self._intake(registration, task, sticky, slots, reads_history=True)
            )

    def _intake(
        self,
        registration: Registration,
        task: TaskType,
        source: Source,
        slots: Slots,
        *,
        reads_history: bool,
    ) -> Intake:
        dead_letters = DeadLetters(self._events, registration.task_type)
        arrivals = Arrivals(
            self._cancellations,
            self._events,
            dead_letters,
            self._config,
            self._counters,
            always_read_history=reads_history,
        )
        invoke = self._executors.invoke(registration.handler)
        dispatcher = Dispatcher(
            self._environment(task),
            arrivals=arrivals,
            runner=HandlerRunner(registration.handler, invoke, self._hooks, self._counters),
            dead_letters=dead_letters,
            hooks=self._hooks,
            retry=registration.retry,
            config=self._config,
            counters=self._counters,
        )
        return Intake(
            source,
            slots,
            dispatcher,
            transport=self._transport,
            held=self._held,
            cancellations=self._cancellations,
            counters=self._counters,
            config=self._config,
            timeout_s=registration.timeout.total_seconds(),
            renew=registration.heartbeat,
            on_bug=self._on_bug,
        )

    def _environment(self, task: TaskType) -> Environment:
        return Environment(
            worker_id=self._worker.worker_id,
            task_type=task,
            transport=self._transport,
            events=self._events,
            loop=asyncio.get_running_loop(),
            capabilities=self.facade.capabilities,
        )

    def _on_bug(self, error: BaseException) -> None:
        logger.error("this should not happen; the worker stops", exc_info=error)
        if not self._broken.done():
            self._broken.set_result(f"{type(error).__name__}: {error}")

    async def broken(self) -> str:
        """Return, with the reason, when the worker cannot go on."""
        closed = self._transport.closed
        await asyncio.wait({closed, self._broken}, return_when=asyncio.FIRST_COMPLETED)
        return closed.result() if closed.done() else self._broken.result()

    # ------------------------------------------------------------------ stop

    async def stop(self, timeout: timedelta) -> None:
        """Drain once, however often it is asked for."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(timeout), name="dagnats-worker drain")
        await asyncio.shield(self._stopping)

    async def _stop(self, timeout: timedelta) -> None:
        await self.facade.enter("draining")
        await asyncio.gather(*(intake.drain() for intake in self._intakes))
        await self._wait_for_handlers(timeout.total_seconds())
        await self._close()

    async def _wait_for_handlers(self, within_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + within_s
        if await self._all_ended(deadline):
            return
        self.drained = False
        logger.warning("%d handlers still run after %g s; ending them", len(self._held), within_s)
        for inflight in self._held:
            inflight.interrupt(Ending.DRAIN)
        if await self._all_ended(asyncio.get_running_loop().time() + CUT_WAIT_S):
            return
        await self.cut()

    async def _all_ended(self, deadline: float) -> bool:
        now = asyncio.get_running_loop().time()
        within_s = max(0.0, deadline - now)
        return all(await asyncio.gather(*(intake.wait(within_s) for intake in self._intakes)))

    async def cut(self) -> None:
        """Cancel everything that is still there; its messages are given back."""
        self.drained = False
        for intake in self._intakes:
            intake.cut()
        await self._all_ended(asyncio.get_running_loop().time() + CUT_WAIT_S)

    async def abort(self) -> None:
        """Undo a start that has failed half-way."""
        await asyncio.gather(*(intake.drain() for intake in self._intakes))
        await self._close()

    async def _close(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.close()
        await asyncio.gather(*(intake.close() for intake in self._intakes))
        await self._scopes.aclose()
        await self.facade.close()
        await self._executors.close(CUT_WAIT_S)
        if self._transport.connected:
            await self._transport.flush()
        await self._transport.close()
        await self.facade.enter("stopped")

    # ------------------------------------------------------------------ looking at it

    def stats(self) -> Stats:
        counters = self._counters
        lag_s = self._supervisor.loop_lag_s if self._supervisor is not None else 0.0
        return Stats(
            delivered=counters.delivered,
            redelivered=counters.redelivered,
            completed=counters.completed,
            failed=counters.failed,
            retried=counters.retried,
            released=counters.released,
            skipped=counters.skipped,
            rejected=counters.rejected,
            renewals=self._transport.leases.renewals,
            publish_retries=counters.publish_retries,
            slots_in_use=self._slots.gate.inside,
            abandoned=self._executors.abandoned,
            loop_lag_s=lag_s,
        )
