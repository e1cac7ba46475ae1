"""What plugins see of the worker."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from dagnats_worker._transport import KeyValue, Transport
from dagnats_worker.errors import PluginError, UsageError
from dagnats_worker.hookspecs import Capability, PluginState, Stats, TaskType, WorkerState

if TYPE_CHECKING:
    from dagnats_worker._context import BaseContext

logger = logging.getLogger("dagnats_worker.plugins")

T = TypeVar("T")

STATES: tuple[WorkerState, ...] = ("starting", "running", "draining", "stopped")
RESTART_WAIT_FIRST_S = 0.5
RESTART_WAIT_MAX_S = 60.0

_bucket_name = re.compile(r"[-_a-zA-Z0-9]+")


class Facade:
    """A worker, as the protocol ``WorkerFacade`` describes it."""

    def __init__(
        self,
        *,
        worker_id: str,
        groups: tuple[str, ...],
        partitions: int,
        max_tasks: int,
        task_types: tuple[TaskType, ...],
        plugins: Callable[[], tuple[PluginState, ...]],
        transport: Transport,
        stats: Callable[[], Stats],
    ) -> None:
        self.worker_id = worker_id
        self.version = version("dagnats-worker")
        self.groups = groups
        self.partitions = partitions
        self.max_tasks = max_tasks
        self.task_types = task_types
        self._plugins = plugins
        self.stats = stats
        self.capabilities: dict[Capability[Any], Callable[[BaseContext], Any]] = {}
        self.state: WorkerState = "starting"
        self._transport = transport
        self._changed = asyncio.Condition()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def plugins(self) -> tuple[PluginState, ...]:
        return self._plugins()

    @property
    def max_payload(self) -> int:
        return self._transport.max_payload

    @property
    def jetstream(self) -> Any:
        jetstream = getattr(self._transport, "jetstream", None)
        if jetstream is None:
            raise UsageError("there is no JetStream behind the in-memory transport; use a server")
        return jetstream

    async def wait_for(self, state: WorkerState) -> None:
        wanted = STATES.index(state)
        async with self._changed:
            await self._changed.wait_for(lambda: STATES.index(self.state) >= wanted)

    async def enter(self, state: WorkerState) -> None:
        """Move on to a state, and tell who waits for it."""
        async with self._changed:
            self.state = state
            self._changed.notify_all()

    def kv(self, bucket: str) -> KeyValue:
        return self._transport.key_value(bucket)

    async def create_kv(self, bucket: str, *, ttl: timedelta | None = None) -> KeyValue:
        if not _bucket_name.fullmatch(bucket):
            raise ValueError(f"bucket {bucket!r}: letters, digits, '-' and '_' are allowed")
        await self._transport.create_key_value(bucket, ttl or timedelta(0))
        return self.kv(bucket)

    def provide(self, capability: Capability[T], factory: Callable[[BaseContext], T]) -> None:
        if capability in self.capabilities:
            raise PluginError(f"two plugins provide {capability.name!r}; leave one of them out")
        self.capabilities[capability] = factory

    def spawn(
        self, make: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Callable[[], Awaitable[None]]:
        task = asyncio.create_task(_keep_running(make, name), name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        return end

    async def close(self) -> None:
        """End what plugins have spawned and not ended themselves."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_running(make: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    wait_s = RESTART_WAIT_FIRST_S
    while True:
        try:
            await make()
        except Exception:  # a plugin's background work never ends the worker
            logger.exception("%s failed; it is started again in %.1f s", name, wait_s)
        else:
            return
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, RESTART_WAIT_MAX_S)
