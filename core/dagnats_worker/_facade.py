"""What plugins see of the worker."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from dagnats_worker._background import Background
from dagnats_worker._key_value import KeyValue
from dagnats_worker._routes import Response, Routes
from dagnats_worker._transport import Transport
from dagnats_worker.errors import PluginError, UsageError
from dagnats_worker.hookspecs import (
    Capability,
    KeepAlive,
    PluginState,
    Stats,
    TaskType,
    WorkerState,
)

if TYPE_CHECKING:
    from dagnats_worker._context import BaseContext
    from dagnats_worker._plugins import Hooks

logger = logging.getLogger("dagnats_worker.plugins")

T = TypeVar("T")
Factory = Callable[["BaseContext"], Any]

STATES: tuple[WorkerState, ...] = ("starting", "running", "draining", "stopped")

_bucket_name = re.compile(r"[-_a-zA-Z0-9]+")
_wildcard = re.compile(r"(^|\.)(\*|>)(\.|$)|\s")


class _Held:
    """A request that a plugin has sent again and again, until it ends it or is gone itself."""

    def __init__(self, owner: str, subject: str) -> None:
        self.owner = owner
        self.subject = subject
        self.ended = False
        self.end: Callable[[], None] = lambda: None

    def telling(self, callback: Callable[[Any], None] | None) -> Callable[[Any], None]:
        """The plugin's callback, which never ends what calls it, and is silent after the end."""

        def tell(what: Any) -> None:
            if self.ended or callback is None:
                return
            try:
                callback(what)
            except Exception:  # a plugin's callback can raise anything
                logger.exception("plugin %r, keep_alive of %s", self.owner, self.subject)

        return tell


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
        hooks: Hooks,
        transport: Transport,
        stats: Callable[[], Stats],
    ) -> None:
        self.worker_id = worker_id
        self.version = version("dagnats-worker")
        self.groups = groups
        self.partitions = partitions
        self.max_tasks = max_tasks
        self.task_types = task_types
        self.stats = stats
        self.capabilities: dict[Capability[Any], Factory] = {}
        self.state: WorkerState = "starting"
        self.background = Background()
        self.routes = Routes()
        self._hooks = hooks
        self._providers: dict[Capability[Any], str] = {}
        self._kept_alive: list[_Held] = []
        self._transport = transport
        self._changed = asyncio.Condition()
        self.drain_ends_at = math.inf

    @property
    def plugins(self) -> tuple[PluginState, ...]:
        return self._hooks.states

    @property
    def max_payload(self) -> int:
        return self._transport.max_payload

    @property
    def jetstream(self) -> Any:
        return self._of_a_server("jetstream")

    @property
    def nats(self) -> Any:
        return self._of_a_server("nats")

    async def listen(self, subject: str, take: Callable[[Any], None]) -> Any:
        return await self._of_a_server("listen")(subject, take)

    def _of_a_server(self, name: str) -> Any:
        found = getattr(self._transport, name, None)
        if found is None:
            raise UsageError("there is no JetStream behind the in-memory transport; use a server")
        return found

    async def wait_for(self, state: WorkerState) -> None:
        if state not in STATES:
            raise ValueError(f"a worker is never {state!r}; its states are {', '.join(STATES)}")
        wanted = STATES.index(state)
        async with self._changed:
            await self._changed.wait_for(lambda: STATES.index(self.state) >= wanted)

    def drain_left(self) -> timedelta | None:
        if self.drain_ends_at == math.inf:
            return None
        return timedelta(seconds=max(0.0, self.drain_ends_at - time.monotonic()))

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
        if inspect.iscoroutinefunction(factory):
            raise UsageError(
                f"the factory of {capability.name!r} is async; it is called, not awaited"
            )
        owner = self._owner()
        if capability in self.capabilities:
            first = self._providers[capability]
            raise PluginError(
                f"plugins {first!r} and {owner!r} both provide {capability.name!r}; "
                "leave one of them out"
            )
        self.capabilities[capability] = factory
        self._providers[capability] = owner

    def spawn(
        self, make: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Callable[[], Awaitable[None]]:
        return self.background.spawn(make, name, self._owner())

    def skip_hooks(self, *hooks: str) -> None:
        member = self._hooks.calling()
        if member is None:
            raise UsageError("skip_hooks is called in worker_scope")
        self._hooks.skip(member, hooks)

    def keep_alive(self, request: KeepAlive, every: timedelta) -> Callable[[], None]:
        if every <= timedelta(0):
            raise ValueError(f"every is longer than zero, got {every!r}")
        if not request.subject or _wildcard.search(request.subject):
            raise ValueError(f"a request has one subject, got {request.subject!r}")
        held = _Held(self._owner(), request.subject)
        guarded = replace(
            request, answered=held.telling(request.answered), failed=held.telling(request.failed)
        )
        end_sending = self._transport.leases.keep_alive(guarded, every.total_seconds())

        def end() -> None:
            held.ended = True
            end_sending()
            if held in self._kept_alive:
                self._kept_alive.remove(held)

        held.end = end
        self._kept_alive.append(held)
        return end

    def add_route(
        self,
        path: str,
        handler: Callable[[], Coroutine[Any, Any, Response]],
        *,
        merge: Callable[[list[bytes]], bytes] | None = None,
    ) -> None:
        self.routes.add(path, handler, merge, self._owner())

    async def forget(self, plugin: str) -> None:
        """Undo what a plugin has done that could not be started."""
        for capability in [key for key, owner in self._providers.items() if owner == plugin]:
            del self.capabilities[capability], self._providers[capability]
        for held in list(self._kept_alive):
            if held.owner == plugin:
                held.end()
        self.routes.forget(plugin)
        await self.background.end(plugin)

    async def close(self) -> None:
        """End what plugins have begun and not ended themselves."""
        for held in list(self._kept_alive):
            held.end()
        self._hooks.skip_none()
        await self.background.close()

    def _owner(self) -> str:
        member = self._hooks.calling()
        return member.name if member is not None else "?"
