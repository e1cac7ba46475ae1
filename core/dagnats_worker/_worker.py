"""The worker: registrations, start, drain, stop. The only place where all is put together."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from dagnats_worker._config import WorkerConfig, installed_overrides
from dagnats_worker._health import WorkerHealth
from dagnats_worker._load import Setup, url_of_command_line
from dagnats_worker._naming import check_token, check_worker_id
from dagnats_worker._open import open_transport
from dagnats_worker._plugins import Hooks
from dagnats_worker._processes import importing_main
from dagnats_worker._registry import Registry
from dagnats_worker._running import RunningWorker
from dagnats_worker._serve import serve
from dagnats_worker._transport import Transport, is_transport
from dagnats_worker.errors import StartError, TransportError, UsageError
from dagnats_worker.hookspecs import Plugin, Stats, WorkerState

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient  # noqa: TID251 - the type of a parameter

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("dagnats_worker.worker")

MAX_TASKS_DEFAULT = 64
PARTITIONS_MAX = 256
"""Source: wire protocol, section 7.2."""


def new_worker_id() -> str:
    """An id that sorts by start time: ``worker-``, hex milliseconds, six random hex digits."""
    return f"worker-{time.time_ns() // 1_000_000:x}{secrets.token_hex(3)}"


class Worker:
    """Takes tasks from a DagNats engine, or from a ``Client``, and runs handlers for them.

    Making one touches nothing: it connects when it is started.

    Args:
        connection: A URL, a list of URLs, a nats-py client that is connected already (it is then
            never closed here), a ``MemoryTransport`` of ``dagnats_worker.testing``, or None for
            what the configuration says.
        worker_id: A single token; made up when not given. Give one where a run is bound to its
            worker across restarts.
        groups: Serve only steps of these groups.
        partitions: Split each task type into so many partitions; needs the plugin ``partitions``.
        max_tasks: How many handlers run at once, over all task types.
        plugins: Exactly these plugins; without it those that are installed and not disabled, loaded
            at the first registration or at the start.
        config: Everything else, or the file to read it from; without it, environment and
            ``dagnats-worker.toml`` or ``pyproject.toml`` of the current folder say.

    Raises:
        ValueError, TypeError: An argument that cannot work; names it and its value.

    Source: dagnats worker/worker.go, NewWorker.
    """

    def __init__(
        self,
        connection: str | Sequence[str] | NatsClient | Transport | None = None,
        *,
        worker_id: str | None = None,
        groups: Sequence[str] = (),
        partitions: int = 0,
        max_tasks: int = MAX_TASKS_DEFAULT,
        plugins: Sequence[Plugin[Any]] | None = None,
        config: WorkerConfig | Path | str | None = None,
    ) -> None:
        overrides = installed_overrides()
        max_tasks = overrides.max_tasks or max_tasks
        if not isinstance(max_tasks, int) or isinstance(max_tasks, bool) or max_tasks < 1:
            raise ValueError(f"max_tasks is a whole number of at least 1, got {max_tasks!r}")
        if worker_id is not None:
            check_worker_id(worker_id)
        if isinstance(groups, str) or not isinstance(groups, Sequence):
            raise TypeError(f"groups is a list of names, got {groups!r}")
        for group in groups:
            check_token("group", group)
        self.worker_id = _own_id(worker_id, overrides.process)
        self.groups = tuple(groups)
        self.partitions = _checked_partitions(partitions)
        self.max_tasks = max_tasks
        self._setup = Setup(plugins, config)
        self._connection = _checked_connection(connection)
        self._loaded: Hooks | None = None
        self._running: RunningWorker | None = None
        self._is_starting = False

    @property
    def config(self) -> WorkerConfig:
        """How the worker is configured; read when it is first needed."""
        return self._setup.config

    @config.setter
    def config(self, config: WorkerConfig) -> None:
        self._setup.config = config

    @cached_property
    def _registry(self) -> Registry:
        return Registry(max_tasks=self.max_tasks, processes_max=self.config.processes_max)

    @cached_property
    def health(self) -> WorkerHealth:
        """What ``/livez`` and ``/readyz`` say, for a program that has an HTTP server of its own."""
        return WorkerHealth(self.worker_id, self.config)

    @property
    def _hooks(self) -> Hooks:
        """Selected, imported and configured once, when they are first needed."""
        if self._loaded is None:
            self._loaded = self._setup.load_hooks()
        return self._loaded

    # ------------------------------------------------------------------ registering handlers

    def task(self, task_type: str, **options: Any) -> Callable[[F], F]:
        """Register the decorated function for a task type, and leave it as it is.

        Args:
            task_type: One or more NATS tokens, joined by dots.
            options: As in :meth:`handle`.
        """

        def register(function: F) -> F:
            self.handle(task_type, function, **options)
            return function

        return register

    def handle(self, task_type: str, handler: Callable[..., Any], **options: Any) -> None:
        """Register a handler for a task type.

        Args:
            handler: Takes ``(ctx)``, ``(ctx, input)`` or ``(input)``. Async functions run on the
                event loop, others in threads.
            options: ``concurrency`` (handlers of this type at once), ``timeout`` and ``ack_wait``
                (timedelta), ``retry`` (a ``Retry``, for runs without an engine), ``executor``
                (``"async"``, ``"thread"``, ``"process"``), ``heartbeat`` (False: the lease is not
                renewed by itself), ``needs`` (capabilities), ``unwrap_trigger``, and whatever the
                plugins declare.

        Raises:
            TypeError, ValueError: A handler or an option that cannot work.
            UsageError: The worker runs already, the type has a handler, or nobody knows the option.

        Source: dagnats worker/worker.go, Handle.
        """
        self._register(task_type, handler, options, typed=False)

    def handle_typed(self, task_type: str, handler: Callable[..., Any], **options: Any) -> None:
        """Register a handler that must take an input, decoded by its annotation.

        Source: dagnats worker/typed.go, HandleTyped.
        """
        self._register(task_type, handler, options, typed=True)

    def handle_singleton(self, task_type: str, handler: Callable[..., Any], **options: Any) -> None:
        """Register a handler of which at most one runs at a time, in the whole fleet.

        Raises:
            UsageError: The plugin ``singleton`` is not there; says what to install.

        Source: dagnats worker/worker.go, HandleSingleton.
        """
        self._register(task_type, handler, {**options, "singleton": True}, typed=False)

    def _register(
        self, task_type: str, handler: Callable[..., Any], options: dict[str, Any], *, typed: bool
    ) -> None:
        if self._running is not None or self._is_starting:
            raise UsageError(f"{task_type!r} is registered too late: the worker runs already")
        hooks = self._hooks
        self._registry.add(
            task_type, handler, options, hooks.plugins, typed=typed, left_out=hooks.left_out
        )

    # ------------------------------------------------------------------ running

    async def start(self) -> None:
        """Connect, check, and begin to take tasks.

        Raises:
            ConnectError: No server.
            StartError: Something is missing or in the way; the message names the remedy.
            PluginError: A plugin failed.

        Source: dagnats worker/worker.go, Start.
        """
        if self._running is not None or self._is_starting:
            raise UsageError("the worker was started already; make another one to start again")
        self._is_starting = True
        try:
            self._running = await self._start()
        finally:
            self._is_starting = False

    async def _start(self) -> RunningWorker:
        if not self._registry.all:
            raise StartError("the worker has no handlers; register one with @worker.task(...)")
        if self.partitions and not self._hooks.open_source:
            raise StartError(
                f"partitions={self.partitions} needs a plugin: pip install "
                "'dagnats-worker[partitions]'"
            )
        self._registry.check_names(self.groups)
        if not installed_overrides().supervised:
            self.health.open()
        try:
            return await self._start_running()
        except BaseException:
            self.health.close()
            raise

    async def _start_running(self) -> RunningWorker:
        transport = await self._connect()
        running = RunningWorker(self, self._registry, self._hooks, transport)
        try:
            await running.start()
        except TransportError as error:
            await running.abort()
            raise StartError(str(error)) from error
        except BaseException:
            await running.abort()
            raise
        return running

    async def _connect(self) -> Transport:
        return await open_transport(self._connection, self.config, name=self.worker_id)

    async def stop(self, timeout: timedelta | None = None) -> None:
        """Drain, and let go of everything; does nothing when there is nothing to stop.

        Args:
            timeout: How long handlers may go on; the configured ``drain_timeout`` when not given.

        Source: dagnats worker/worker.go, Stop.
        """
        if self._running is not None:
            within = self.config.drain_timeout if timeout is None else timeout
            try:
                await self._running.stop(within)
            finally:
                self.health.close()

    async def cut(self) -> None:
        """End a drain at once: handlers are cut off, and their tasks come again."""
        if self._running is not None:
            await self._running.cut()

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def run(self) -> None:
        """Run until SIGINT or SIGTERM, then drain; a second signal forces the end.

        Does nothing in the child of a process handler, which imports the main module again.

        Raises:
            SystemExit: With a code other than 0 when the drain had to give up, or the worker could
                not go on.
        """
        if importing_main():
            return
        code = serve(self)
        if code:
            raise SystemExit(code)

    # ------------------------------------------------------------------ looking at it

    @property
    def state(self) -> WorkerState:
        """What the worker is doing."""
        return self._running.facade.state if self._running is not None else "starting"

    @property
    def task_types(self) -> tuple[str, ...]:
        """The task types that have a handler, in the order of their registration."""
        return tuple(registration.task_type for registration in self._registry.all)

    @property
    def handling(self) -> tuple[str, ...]:
        """The task types of the handlers that run now, each as often as it runs."""
        return self._running.handling() if self._running is not None else ()

    @property
    def drained(self) -> bool:
        """Whether the last stop let every handler end by itself."""
        return self._running is not None and self._running.drained

    def stats(self) -> Stats:
        """What the worker has done since it was started.

        Raises:
            UsageError: It was not started.
        """
        if self._running is None:
            raise UsageError("a worker that was not started has no statistics")
        return self._running.stats()

    async def wait_stopped(self) -> str:
        """Return, with the reason, when the worker cannot go on by itself."""
        if self._running is None:
            raise UsageError("the worker was not started")
        return await self._running.broken()


def _own_id(given: str | None, process: int | None) -> str:
    if given is None:
        return new_worker_id()
    return given if process is None else f"{given}-{process}"


def _checked_connection(
    connection: str | Sequence[str] | NatsClient | Transport | None,
) -> str | Sequence[str] | NatsClient | Transport | None:
    if is_transport(connection):
        return connection
    is_client = hasattr(connection, "jetstream")  # nats-py is imported only to connect
    if not (connection is None or isinstance(connection, str | Sequence) or is_client):
        raise TypeError(
            f"connection is a URL, a list of URLs or a connected nats-py client, got {connection!r}"
        )
    return url_of_command_line() or connection


def _checked_partitions(partitions: int) -> int:
    if not isinstance(partitions, int) or isinstance(partitions, bool):
        raise TypeError(f"partitions is a whole number, got {partitions!r}")
    if not 0 <= partitions <= PARTITIONS_MAX:
        raise ValueError(
            f"partitions is at most {PARTITIONS_MAX}, and not negative; got {partitions}"
        )
    return partitions
