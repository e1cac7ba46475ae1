"""What plugins see of the worker, as data and as a protocol; ``hookspecs`` exports all of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from dagnats_worker._key_value import KeyValue
from dagnats_worker._routes import Response
from dagnats_worker.errors import UsageError

if TYPE_CHECKING:
    from dagnats_worker._context import BaseContext
    from dagnats_worker.hookspecs import Capability, Plugin

T = TypeVar("T")

WorkerState = Literal["starting", "running", "draining", "stopped"]


@dataclass(frozen=True, slots=True)
class TaskType:
    """A registered task type, for one group.

    Attributes:
        name: The task type, as in the subject.
        group: The group that this worker serves, or None.
        concurrency: How many handlers of this type may run at once in this worker.
        ack_wait: The lease that was asked for; None for what the consumer has.
        timeout: After this long a handler is given up.
        executor: Where its handler runs: ``async``, ``thread`` or ``process``.
    """

    name: str
    group: str | None
    concurrency: int
    ack_wait: timedelta | None
    timeout: timedelta
    plugin_options: dict[type[Any], Any]
    executor: Literal["async", "thread", "process"] = "async"

    def options(self, plugin: type[Plugin[Any]]) -> Any:
        """The task options that this plugin declared, as its ``task_options`` dataclass.

        Raises:
            UsageError: The plugin declares none, or is not one of this worker's.
        """
        for kind, options in self.plugin_options.items():
            if issubclass(kind, plugin):
                return options
        raise UsageError(f"task type {self.name!r} has no options of {plugin.__name__}")


@dataclass(frozen=True, slots=True)
class Stats:
    """What the worker has done since it started; every counter only grows.

    Attributes:
        delivered: Messages that the worker took.
        redelivered: Those of them that had been delivered before.
        completed: Steps that ended with ``step.completed`` or ``step.continue``.
        failed: Steps that ended with ``step.failed``.
        retried: Tasks that were given back to be tried again.
        released: Tasks that were given back for another reason.
        skipped: Tasks that were acked without running: cancelled, or done before.
        skipped_cancelled: Those of them whose run was cancelled.
        rejected: Messages that could not be decoded.
        renewals: Leases that were renewed.
        publish_retries: Events that had to be sent again.
        slots_in_use: Handlers that run now; not a counter.
        abandoned: Handler threads that outlived their task and still run; not a counter.
        loop_lag_s: How late the event loop was, at worst, in the last half minute or somewhat
            longer; not a counter.
    """

    delivered: int
    redelivered: int
    completed: int
    failed: int
    retried: int
    released: int
    skipped: int
    skipped_cancelled: int
    rejected: int
    renewals: int
    publish_retries: int
    slots_in_use: int
    abandoned: int
    loop_lag_s: float


@dataclass(frozen=True, slots=True)
class PluginState:
    """A plugin of a running worker.

    Attributes:
        version: Of its distribution; empty where nobody knows.
        state: ``active``, ``quarantined``, ``failed``, ``incompatible``.
        reason: What failed last, or why it is not active.
    """

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """A request that is sent again and again, also while a handler blocks the event loop.

    Attributes:
        subject: Where it goes; a stream or a bucket answers what is published to it.
        data: What is sent, or a function that makes it anew for each request. The function runs in
            the thread that renews the leases: it must be quick, and may not touch the event loop.
        headers: Of each request.
        answered: Called on the event loop with each answer.
        failed: Called on the event loop with the reason, when a request was not answered within
            ``every``, or could not be sent.
    """

    subject: str
    data: bytes | Callable[[], bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    answered: Callable[[bytes], None] | None = None
    failed: Callable[[str], None] | None = None

    def body(self) -> bytes:
        """What is to be sent now."""
        return self.data() if callable(self.data) else self.data


class WorkerFacade(Protocol):
    """What a plugin sees of the worker."""

    @property
    def worker_id(self) -> str:
        """A single token, unique in the fleet."""
        ...

    @property
    def version(self) -> str:
        """Version of the core distribution."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that it serves; empty where it serves steps without one."""
        ...

    @property
    def partitions(self) -> int:
        """Into how many partitions each task type is split; 0 for not at all."""
        ...

    @property
    def max_tasks(self) -> int:
        """How many handlers run at once, over all task types."""
        ...

    @property
    def max_payload(self) -> int:
        """Largest message that the server takes, in bytes; 0 before the connection is there."""
        ...

    @property
    def task_types(self) -> tuple[TaskType, ...]:
        """What it serves, once for each group."""
        ...

    @property
    def plugins(self) -> tuple[PluginState, ...]:
        """Its plugins in the order of their hooks, then those that could not be used."""
        ...

    @property
    def state(self) -> WorkerState:
        """What it is doing; a state is never gone back to."""
        ...

    async def wait_for(self, state: WorkerState) -> None:
        """Return once the worker is in this state, or past it."""
        ...

    def drain_left(self) -> timedelta | None:
        """How long the drain may still take, zero where its time is over; None before it begins."""
        ...

    def stats(self) -> Stats:
        """What it has done since it was started."""
        ...

    def spawn(
        self, make: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Callable[[], Awaitable[None]]:
        """Run a coroutine function beside the tasks; returns what ends it.

        An error is logged and the function is called again, after a pause that grows to a minute;
        it never ends the worker. What is still running when the worker stops is cancelled.
        """
        ...

    def skip_hooks(self, *hooks: str) -> None:
        """Leave these hooks of the plugin out while the worker runs: they have nothing to do in it.

        A hook that does nothing costs each task nearly as much as one that does something. Only
        hooks of a task can be skipped, and only in ``worker_scope``.

        Raises:
            ValueError: Not a hook of a task.
            UsageError: Called elsewhere.
        """
        ...

    def keep_alive(self, request: KeepAlive, every: timedelta) -> Callable[[], None]:
        """Send a request now and then every so often; returns what ends it.

        It is sent from the thread that renews the leases, and as they are, for at most
        ``loop_blocked_max`` while the event loop is blocked. What has not ended when the worker
        stops is ended.

        Raises:
            ValueError: ``every`` is not longer than zero, or the subject has a wildcard.
        """
        ...

    def add_route(
        self,
        path: str,
        handler: Callable[[], Coroutine[Any, Any, Response]],
        *,
        merge: Callable[[list[bytes]], bytes] | None = None,
    ) -> None:
        """Answer a path of the health port, such as ``/metrics``; no effect where none is served.

        The handler runs on the event loop, for a few seconds at most.

        Args:
            merge: Makes one body of those that several processes of ``--processes`` have answered
                with status 200. A function of a module: the process that calls it imports it by its
                name, and loads no plugin. Without it the answer is an object with each worker's id
                and what it said.

        Raises:
            ValueError: Not a path, or ``merge`` cannot be imported by its name.
            TypeError: The handler is not an async function.
            PluginError: Another plugin has added that path, or it is one of the worker's own.
        """
        ...

    def kv(self, bucket: str) -> KeyValue:
        """A key-value bucket, also on the in-memory transport."""
        ...

    async def create_kv(self, bucket: str, *, ttl: timedelta | None = None) -> KeyValue:
        """The same, created where it does not exist; one that exists is left as it is.

        Args:
            ttl: After this long without a write a key is gone; None for never.

        Raises:
            ValueError: Not the name of a bucket.
            StartError: JetStream has no room for it.
            TransportError: The server did not answer, or the user may not do this.
        """
        ...

    def provide(self, capability: Capability[T], factory: Callable[[BaseContext], T]) -> None:
        """Let handlers ``ctx.use(capability)``; ``factory`` is called on first use in a task.

        Raises:
            PluginError: The capability is provided already.
        """
        ...

    @property
    def jetstream(self) -> Any:
        """nats-py's JetStreamContext; ``UsageError`` on the in-memory transport."""
        ...

    @property
    def nats(self) -> Any:
        """nats-py's Client, for what its JetStreamContext lacks; ``UsageError`` likewise."""
        ...

    async def listen(self, subject: str, take: Callable[[Any], None]) -> Any:
        """nats-py's Subscription, of which a plain function is given each Msg as it is read.

        Without the queue and the task that nats-py has for each subscription, which cost as much as
        a fifth of a small task. What ``take`` raises is logged.

        Raises:
            UsageError: There is no server behind the in-memory transport.
        """
        ...
