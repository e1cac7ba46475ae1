"""How the task types of a running worker are served: whence tasks come, and their walk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dagnats_worker._arrival import Arrivals
from dagnats_worker._cancellation import Cancellations
from dagnats_worker._config import WorkerConfig
from dagnats_worker._counters import Counters
from dagnats_worker._dead_letters import DeadLetters
from dagnats_worker._dispatcher import Dispatcher
from dagnats_worker._events import Events
from dagnats_worker._execution import Environment
from dagnats_worker._executors import Executors
from dagnats_worker._facade import Facade
from dagnats_worker._inflight import Held
from dagnats_worker._intake import Intake
from dagnats_worker._plugin_source import PluginSource, a_source
from dagnats_worker._plugins import Hooks
from dagnats_worker._registry import Registration
from dagnats_worker._run_handler import HandlerRunner
from dagnats_worker._slots import Gate, Slots, WorkerSlots
from dagnats_worker._sources import STICKY_STREAM, open_sticky, open_tasks
from dagnats_worker._transport import Source, Transport
from dagnats_worker.hookspecs import TaskType


@dataclass(slots=True, kw_only=True)
class Serving:
    """What all task types of a worker share."""

    transport: Transport
    config: WorkerConfig
    hooks: Hooks
    facade: Facade
    events: Events
    executors: Executors
    cancellations: Cancellations
    counters: Counters
    held: Held
    slots: WorkerSlots
    on_bug: Callable[[BaseException], None]

    async def open(self, registration: Registration, group: str | None) -> Source:
        """A plugin's own source for a task type, or else the durable that all workers share.

        Raises:
            PluginError: A required plugin failed.
            StartError: The durable cannot be used.
        """
        if self.hooks.open_source:
            source: Source | None = await self.hooks.first(
                self.hooks.open_source,
                vital=True,
                accept=a_source,
                worker=self.facade,
                task=registration.for_group(group),
            )
            if source is not None:
                return PluginSource(source, self.config.hook_timeout)
        return await open_tasks(self.transport, registration, group)

    async def open_sticky(self, registrations: Iterable[Registration]) -> dict[str, Source]:
        """Sticky tasks come to workers without groups and partitions, where the stream exists.

        Only beside a durable: a plugin's source may promise an order, or one task at a time.
        """
        if self.facade.groups or self.facade.partitions:
            return {}
        if not await self.transport.has_stream(STICKY_STREAM):
            return {}
        return {
            registration.task_type: await open_sticky(
                self.transport, registration, self.facade.worker_id
            )
            for registration in registrations
        }

    def begin(
        self, registration: Registration, group: str | None, source: Source, sticky: Source | None
    ) -> Iterator[Intake]:
        """Take tasks from these sources, which share the slots of the task type."""
        gate = Gate(registration.concurrency)
        task = registration.for_group(group)
        slots = Slots(self.slots, gate)
        yield self._intake(registration, task, source, slots, reads_history=False)
        if sticky is not None:
            # Its stream keeps what was acked, so a task may have been run before.
            slots = Slots(self.slots, gate, only_idle=True)
            yield self._intake(registration, task, sticky, slots, reads_history=True)

    def _intake(
        self,
        registration: Registration,
        task: TaskType,
        source: Source,
        slots: Slots,
        *,
        reads_history: bool,
    ) -> Intake:
        return Intake(
            source,
            slots,
            self._dispatcher(registration, task, reads_history=reads_history),
            transport=self.transport,
            held=self.held,
            cancellations=self.cancellations,
            counters=self.counters,
            config=self.config,
            timeout_s=registration.timeout.total_seconds(),
            renew=registration.heartbeat,
            on_bug=self.on_bug,
        )

    def _dispatcher(
        self, registration: Registration, task: TaskType, *, reads_history: bool
    ) -> Dispatcher:
        dead_letters = DeadLetters(self.events, registration.task_type)
        arrivals = Arrivals(
            self.cancellations,
            self.events,
            dead_letters,
            self.config,
            self.counters,
            always_read_history=reads_history,
        )
        invoke = self.executors.invoke(registration.handler)
        return Dispatcher(
            self._environment(task),
            arrivals=arrivals,
            runner=HandlerRunner(registration.handler, invoke, self.hooks, self.counters),
            dead_letters=dead_letters,
            hooks=self.hooks,
            retry=registration.retry,
            config=self.config,
            counters=self.counters,
        )

    def _environment(self, task: TaskType) -> Environment:
        return Environment(
            worker_id=self.facade.worker_id,
            task_type=task,
            transport=self.transport,
            events=self.events,
            loop=asyncio.get_running_loop(),
            capabilities=self.facade.capabilities,
        )
