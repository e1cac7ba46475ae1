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

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

import pluggy

from dagnats_worker._current import current_context
from dagnats_worker._inputs import value_decoder
from dagnats_worker._json import encode_value
from dagnats_worker._kept import KeptTask
from dagnats_worker._key_value import Entry, KeyValue
from dagnats_worker._naming import signal_key
from dagnats_worker._routes import Response
from dagnats_worker._settings import configured
from dagnats_worker._slots import Slots
from dagnats_worker._transport import Delivery, Source
from dagnats_worker._worker_facade import (
    KeepAlive,
    PluginState,
    Stats,
    TaskType,
    WorkerFacade,
    WorkerState,
)

if TYPE_CHECKING:
    from dagnats_worker._context import TaskContext
    from dagnats_worker._outcome import Outcome

__all__ = [
    "CHECKPOINTS",
    "SIGNALS",
    "Capability",
    "Checkpointable",
    "Delivery",
    "Entry",
    "KeepAlive",
    "KeptTask",
    "KeyValue",
    "Message",
    "Plugin",
    "PluginState",
    "Response",
    "Signaler",
    "Slots",
    "Source",
    "Stats",
    "TaskType",
    "WorkerFacade",
    "WorkerState",
    "current_context",
    "encode_value",
    "hookimpl",
    "signal_key",
    "value_decoder",
]

PROJECT = "dagnats_worker"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")
SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True, eq=False)
class Capability(Generic[T]):
    """A typed key for something that a plugin provides to handlers.

    ``ctx.use(KEY)`` returns a ``T``. Two capabilities are the same if they are the same object.

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

    @property
    def resumed_from(self) -> str | None:
        """The name of the pause after which the step goes on now; None where it has not paused.

        Known before the handler is started; it does no I/O.
        """
        ...


class Signaler(Protocol):
    """What ``ctx.wait_for_signal`` and its sibling call. Source: dagnats worker/context.go."""

    async def wait_for_signal(self, name: str, timeout: timedelta, *, park: bool = False) -> bytes:
        """The data of the named signal of this run; one that was sent before is found.

        Args:
            park: Give the task up while it waits, so that it takes no slot. The handler is run
                again from its beginning when the signal is there or the time is over.

        Raises:
            SignalTimeoutError: It did not come in time.
            ValueError: Not a name of a signal, or not a time.
            KeyValueError: There is no bucket, or no answer.
        """
        ...

    async def send_signal(self, run_id: str, name: str, data: Any) -> None:
        """Send a signal to a run; bytes as they are, all else as JSON.

        Raises:
            ValueError: Not the id of a run, or not a name of a signal.
            UsageError: The data is not JSON, or larger than the server takes.
            KeyValueError: There is no bucket, or no answer.
        """
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
    Errors: on entry a required plugin's error stops the start, an optional plugin is skipped; on
    exit it is logged.
    """


@hookspec
async def open_source(worker: WorkerFacade, task: TaskType) -> Source | None:
    """Bring another source of deliveries for a task type.

    When: at start, inside ``worker_scope``, once per task type and group.
    Order: configured order; the first answer that is not None wins.
    Errors: a required plugin's error stops the start, and so does a ``StartError`` of any plugin;
    otherwise an optional plugin is skipped.
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
    Errors: a required plugin's error gives the task back, and is raised to a handler or a client
    that sends by itself; an optional plugin's is logged.
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
    Errors: a required plugin's error on entry fails the task as if the handler had raised it; any
    other is logged.
    """
