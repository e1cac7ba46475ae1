"""Everything that a plugin may implement, in one file.

A plugin is a subclass of :class:`Plugin`; its hooks are methods marked with :data:`hookimpl`, named
as one of the functions below, and take any of that function's arguments, by name. An implementation
may be ``def`` or ``async def``; a plain ``def`` must not block. Scopes are async context managers,
except ``child_scope``.

Order: ``before`` and ``after`` of the plugin class, then the order of the configuration, then the
name. Scopes are left in reverse order. Implementations are awaited one by one in the task that runs
the handler, so that context variables that a hook sets are seen by the handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast

import pluggy

from dagnats_worker._settings import configured
from dagnats_worker._slots import Slots
from dagnats_worker._transport import Delivery, Entry, KeyValue, Source

if TYPE_CHECKING:
    from dagnats_worker._context import BaseContext, TaskContext
    from dagnats_worker._outcome import Outcome

__all__ = [
    "CHECKPOINTS",
    "SIGNALS",
    "Capability",
    "Checkpointable",
    "Delivery",
    "Entry",
    "KeyValue",
    "Message",
    "Plugin",
    "PluginState",
    "Signaler",
    "Slots",
    "Source",
    "Stats",
    "TaskType",
    "WorkerFacade",
    "WorkerState",
    "hookimpl",
]

PROJECT = "dagnats_worker"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")
SettingsT = TypeVar("SettingsT")
OptionsT = TypeVar("OptionsT")

WorkerState = Literal["starting", "running", "draining", "stopped"]


@dataclass(frozen=True, slots=True, eq=False)
class Capability(Generic[T]):
    """A typed key for something that a plugin provides to handlers.

    ``ctx.use(KEY)`` returns a ``T``. Two capabilities are the same only if they are the same object.

    Attributes:
        name: What error messages call it.
        install: What to give ``pip install`` to get it, for example ``dagnats-worker[checkpoint]``.
    """

    name: str
    install: str


class Checkpointable(Protocol):
    """What ``ctx.checkpoint`` and its siblings call. Source: dagnats worker/context.go."""

    async def checkpoint(self, state: Any) -> None:
        """Save the state of this step; bytes as they are, all else as JSON."""
        ...

    async def load_checkpoint(self) -> bytes | None:
        """The state that was saved last, or None."""
        ...

    async def pause(self, name: str, duration: timedelta) -> None:
        """Leave a marker, and record that the step is to be run again after ``duration``."""
        ...


class Signaler(Protocol):
    """What ``ctx.wait_for_signal`` and ``ctx.send_signal`` call. Source: dagnats worker/context.go."""

    async def wait_for_signal(self, name: str, timeout: timedelta) -> bytes:
        """The data of the named signal of this run.

        Raises:
            SignalTimeoutError: It did not come in time.
        """
        ...

    async def send_signal(self, run_id: str, name: str, data: Any) -> None:
        """Send a signal to a run; bytes as they are, all else as JSON."""
        ...


CHECKPOINTS: Capability[Checkpointable] = Capability(
    "checkpoints", install="dagnats-worker[checkpoint]"
)
SIGNALS: Capability[Signaler] = Capability("signals", install="dagnats-worker[signals]")


class Plugin(Generic[SettingsT]):
    """A plugin: a name, settings, and the hooks that it implements.

    Attributes:
        name: What configuration, commands and messages call it.
        settings_type: A frozen dataclass; its defaults are the plugin's defaults.
        before: Names of plugins whose hooks are to run after this one's; ``"*"`` for all.
        after: Names of plugins whose hooks are to run before this one's; ``"*"`` for all.
        task_options: A frozen dataclass whose fields are keywords of ``@worker.task``.
        provides: The capabilities that it provides to handlers in ``worker_scope``.
        settings: An instance of ``settings_type``; made from the configuration where the plugin is
            made without.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Any] | None] = None
    before: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    task_options: ClassVar[type[Any] | None] = None
    provides: ClassVar[tuple[Capability[Any], ...]] = ()

    settings: SettingsT

    def __init__(self, settings: SettingsT | None = None) -> None:
        if settings is None and self.settings_type is not None:
            settings = configured(self.name, self.settings_type)
        self.settings = cast("SettingsT", settings)


@dataclass(frozen=True, slots=True)
class TaskType:
    """A registered task type, for one group.

    Attributes:
        name: The task type, as in the subject.
        group: The group that this worker serves, or None.
        concurrency: How many handlers of this type may run at once in this worker.
        ack_wait: The lease that was asked for; None for what the consumer has.
        timeout: After this long a handler is given up.
    """

    name: str
    group: str | None
    concurrency: int
    ack_wait: timedelta | None
    timeout: timedelta
    plugin_options: dict[type[Any], Any]

    def options(self, plugin: type[Plugin[Any]]) -> Any:
        """The task options that this plugin declared, as its ``task_options`` dataclass."""
        return self.plugin_options[plugin]


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
        rejected: Messages that could not be decoded.
        renewals: Leases that were renewed.
        publish_retries: Events that had to be sent again.
        slots_in_use: Handlers that run now; not a counter.
        abandoned: Handler threads that outlived their task and still run; not a counter.
        loop_lag_s: How late the event loop was, at worst, since it was last looked at; not a counter.
    """

    delivered: int
    redelivered: int
    completed: int
    failed: int
    retried: int
    released: int
    skipped: int
    rejected: int
    renewals: int
    publish_retries: int
    slots_in_use: int
    abandoned: int
    loop_lag_s: float


@dataclass(frozen=True, slots=True)
class PluginState:
    """A plugin of a running worker."""

    name: str
    version: str
    state: str


class WorkerFacade(Protocol):
    """What a plugin sees of the worker."""

    @property
    def worker_id(self) -> str: ...

    @property
    def version(self) -> str:
        """Version of the core distribution."""
        ...

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def partitions(self) -> int: ...

    @property
    def max_tasks(self) -> int: ...

    @property
    def max_payload(self) -> int:
        """Largest message that the server takes, in bytes; 0 before the connection is there."""
        ...

    @property
    def task_types(self) -> tuple[TaskType, ...]: ...

    @property
    def plugins(self) -> tuple[PluginState, ...]: ...

    @property
    def state(self) -> WorkerState: ...

    async def wait_for(self, state: WorkerState) -> None:
        """Return once the worker is in this state, or past it."""
        ...

    def stats(self) -> Stats: ...

    def spawn(
        self, make: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Callable[[], Awaitable[None]]:
        """Run a coroutine function beside the tasks; returns what ends it.

        An error is logged and the function is called again, after a pause that grows to a minute;
        it never ends the worker. What is still running when the worker stops is cancelled.
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


@dataclass(slots=True)
class Message:
    """A message that is about to be sent for a task, or by a client.

    Attributes:
        subject: Where it goes.
        headers: May be changed; ``traceparent`` and ``tracestate`` are copied into an event's body.
        event_type: For example ``step.completed``; empty for what is not an event.
    """

    subject: str
    headers: dict[str, str]
    event_type: str = ""


# --------------------------------------------------------------------- the hooks of a worker


@hookspec
def worker_scope(worker: WorkerFacade) -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]  # a specification
    """Hold something from before the first pull until after the drain.

    When: entered once the connection is there, left after the last handler has ended.
    Order: configured order; left in reverse.
    Errors: on entry a required plugin's error stops the start, an optional plugin is skipped; on exit
    it is logged.
    """


@hookspec
async def open_source(worker: WorkerFacade, task: TaskType) -> Source | None:
    """Bring another source of deliveries for a task type.

    When: at start, inside ``worker_scope``, once per task type and group.
    Order: configured order; the first answer that is not None wins.
    Errors: a required plugin's error stops the start; an optional plugin is skipped.
    """


# ----------------------------------------------------------------------- the hooks of a task


@hookspec
def task_scope(ctx: TaskContext) -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]  # a specification
    """Wrap one task, on every path.

    When: after the message was decoded and found to be runnable; left just before it is settled.
    Order: configured order; left in reverse.
    Errors: a required plugin's error on entry gives the task back; any other is logged. A scope
    cannot swallow an exception.
    """


@hookspec
async def pre_handle(ctx: TaskContext) -> None:
    """Prepare or refuse one task before ``step.started`` is published.

    When: inside the scopes, once per delivery, redeliveries included.
    Order: configured order.
    Errors: ``EndTask(outcome)`` ends the task with that outcome, as if the handler had returned it;
    ``DelayTask(duration)`` gives it back; ``SkipTask(reason)`` only acks. Anything else gives the
    task back where the plugin is required, and is logged where it is optional.
    """


@hookspec
async def pre_publish(ctx: TaskContext | None, message: Message) -> None:
    """Change the headers of a message before it is encoded and sent.

    When: before each message of a task, and of a client (``ctx`` is None there).
    Order: configured order.
    Errors: a required plugin's error gives the task back; an optional plugin's is logged.
    """


@hookspec
async def on_error(ctx: TaskContext, error: BaseException, outcome: Outcome) -> Outcome | None:
    """Replace a failure by another outcome.

    When: the handler failed; nothing is published yet.
    Order: configured order; the first answer that is not None wins.
    Errors: logged, and the outcome stands.
    """


@hookspec
def outcome_scope(ctx: TaskContext, outcome: Outcome) -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]  # a specification
    """Wrap the publishing of an outcome.

    When: from before the outcome is published until it is stored, or has failed to be.
    Order: configured order; left in reverse.
    Errors: logged, and the outcome stands.
    """


@hookspec
async def on_complete(ctx: TaskContext, outcome: Outcome) -> None:
    """Learn how a task ended.

    When: the outcome, success or failure, is stored, and the message is about to be acked.
    Order: configured order.
    Errors: logged; nothing can be changed any more.
    """


@hookspec
def child_scope(carrier: dict[str, str]) -> AbstractContextManager[None]:  # type: ignore[empty-body]  # a specification
    """Wrap a handler in the child process that runs it.

    When: in the child, around each handler with ``executor="process"``. ``carrier`` is what plugins
    put into ``ctx.carrier`` in the worker's process.
    Order: configured order; left in reverse.
    Errors: the handler is not run, and the task fails as if the handler had raised them.
    """
