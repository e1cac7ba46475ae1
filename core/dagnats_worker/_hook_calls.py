"""Calling the hooks of plugins: awaited in order, bounded in time, isolated from each other."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

from dagnats_worker.errors import (
    DelayTask,
    EndTask,
    PluginError,
    SkipTask,
    StartError,
    UsageError,
    describe,
)
from dagnats_worker.hookspecs import Plugin, PluginState

logger = logging.getLogger("dagnats_worker.plugins")

FAILURES_MAX_DEFAULT = 10

CONTROL_FLOW = (EndTask, DelayTask, SkipTask)
ENDS_TASKS = "pre_handle"
"""The one hook that may raise those; anywhere else the task is on its way already."""

MAY_REFUSE = "open_source"
"""Where a ``StartError`` counts whoever raises it: without that source, tasks would come from the
queue that all workers share, and not as they were asked for."""

NO_ARGUMENT = ""
ARGUMENTS_MAX = 2
"""With so many an implementation is called directly."""
VITAL, LENIENT = True, False

MemberState = Literal["active", "quarantined", "failed"]
Known = dict[str, Any]
Call = Callable[[Any], Any]


class Member:
    """A plugin of one worker, and how it behaves.

    Attributes:
        required: Its errors give tasks back, or stop the start; an optional plugin is skipped.
        failures_max: So many failures of one hook in a row, and an optional plugin leaves.
        reason: Of the last failure.
        on_leave: Told when it leaves.
    """

    __slots__ = (
        "_version",
        "failures_max",
        "name",
        "on_leave",
        "plugin",
        "reason",
        "required",
        "state",
    )

    def __init__(
        self,
        plugin: Plugin[Any],
        *,
        required: bool,
        version: str | None = None,
        failures_max: int = FAILURES_MAX_DEFAULT,
    ) -> None:
        self.plugin = plugin
        self.name = plugin.name
        self._version = version
        self.required = required
        self.failures_max = failures_max
        self.state: MemberState = "active"
        self.reason = ""
        self.on_leave: Callable[[], None] | None = None

    @property
    def version(self) -> str:
        """Of its distribution; where code hands it over, of the one called like its package."""
        if self._version is None:
            package = type(self.plugin).__module__.partition(".")[0]
            try:
                self._version = version(package)
            except (PackageNotFoundError, ValueError):
                self._version = ""
        return self._version

    def describe(self) -> PluginState:
        """What the worker says of it."""
        return PluginState(self.name, self.version, self.state, self.reason)

    def failed(self, error: BaseException, where: str) -> None:
        """Tell of a failure that changes nothing for the task."""
        self.reason = f"{where}: {describe(error)}"
        is_explained = isinstance(error, StartError | UsageError)  # who reads it knows what to do
        trace = None if is_explained else error
        logger.error("plugin %r, %s", self.name, self.reason, exc_info=trace)

    def leave(self, state: MemberState) -> None:
        """Call none of this plugin's hooks any more."""
        if self.state != "active":
            return
        self.state = state
        logger.error("plugin %r is not called any more (%s): %s", self.name, state, self.reason)
        if self.on_leave is not None:
            self.on_leave()


class Watched(Protocol):
    """Something that awaits hooks, one at a time, and is told by the clock when one takes too long.

    Attributes:
        task: What is cancelled then.
        hook: What is awaited now; the clock puts a ``Seen`` in its place.
        hook_late: How often the clock has cancelled it.
    """

    task: asyncio.Task[Any] | None
    hook: Implementation | Seen | None
    hook_late: int


class Caller:
    """What awaits hooks elsewhere than in the walk of a task, which has its ``InFlight``."""

    __slots__ = ("__weakref__", "hook", "hook_late", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.hook: Implementation | Seen | None = None
        self.hook_late = 0


class Seen:
    """A call that the clock has seen, so that no call has to ask for the time.

    The next call puts its own implementation in this one's place.
    """

    __slots__ = ("implementation", "label", "member", "since")

    def __init__(self, implementation: Implementation, since: float) -> None:
        self.implementation = implementation
        self.label = implementation.label
        self.member = implementation.member
        self.since = since


class Implementation:
    """One plugin's implementation of one hook, or the entry or the exit of a scope.

    Attributes:
        label: What messages call it.
        function: The plugin's own.
        invoke: Calls it with those of the known arguments that it takes.
        is_async: What ``invoke`` gives is a coroutine, without a look at it.
        arguments: What it takes, two at most and by position; None where it is to be called by
            ``invoke``.
        failures: In a row, up to now.
    """

    __slots__ = (
        "arguments",
        "failures",
        "function",
        "hook",
        "invoke",
        "is_async",
        "label",
        "member",
    )

    def __init__(
        self,
        hook: str,
        member: Member,
        function: Callable[..., Any],
        invoke: Call,
        *,
        is_async: bool,
        arguments: Sequence[str] | None = None,
        label: str = "",
    ) -> None:
        self.hook = hook
        self.member = member
        self.function = function
        self.invoke = invoke
        self.is_async = is_async
        self.arguments = arguments
        self.label = label or hook
        self.failures = 0

    def error(self, error: BaseException) -> PluginError:
        """What is raised where the plugin is required."""
        return PluginError(f"plugin {self.member.name!r}, {self.label}: {describe(error)}")

    def failed(self, error: BaseException) -> None:
        """Count a failure that changes nothing for the task; too many in a row, and that was it."""
        self.member.failed(error, self.label)
        self.failures += 1
        if self.failures >= self.member.failures_max and not self.member.required:
            self.member.leave("quarantined")


class Implementations(tuple[Implementation, ...]):
    """The implementations of one hook, in order.

    Attributes:
        steps: What a walk needs of each; to unpack it is faster than to look it up.
        failing: Those whose last call has failed.
    """

    steps: tuple[tuple[Implementation, Callable[..., Any], bool, str, str], ...]
    failing: set[Implementation]

    def __new__(cls, implementations: Iterable[Implementation] = ()) -> Implementations:
        self = super().__new__(cls, implementations)
        self.steps = tuple(_step(one) for one in self)
        self.failing = {one for one in self if one.failures}
        return self


def _step(
    implementation: Implementation,
) -> tuple[Implementation, Callable[..., Any], bool, str, str]:
    """Itself, its function, whether that is to be called directly, and with which arguments."""
    arguments = implementation.arguments
    one, two, *_ = (*(arguments or ()), NO_ARGUMENT, NO_ARGUMENT)
    return implementation, implementation.function, arguments is not None, one, two


async def call(implementation: Implementation, watched: Watched, known: Any) -> Any:
    """Call one implementation and await it, for at most as long as the clock allows."""
    outer, watched.hook = watched.hook, implementation
    try:
        return await _invoked(implementation, known)
    except BaseException as error:
        reason = reason_of(error, watched)
        if reason is error:
            raise
        raise reason from error
    finally:
        watched.hook = outer
        if watched.hook_late:
            take_back(watched)


async def walk(  # noqa: C901 - a function between would cost as much as the call
    implementations: Implementations,
    watched: Watched,
    known: Known,
    vital: bool,  # noqa: FBT001 - said as VITAL or LENIENT
) -> None:
    """Call each in order, for at most as long as the clock allows each.

    Twenty calls for a task are usual where there are plugins, so they are made here, without a
    function between. Walks can be nested: what a hook sends for its task is shown to others.

    Args:
        vital: The error of a required plugin ends the walk and is raised, where all others are
            logged; or else all are logged.
    """
    outer, failing = watched.hook, implementations.failing
    try:
        for implementation, function, directly, one, two in implementations.steps:
            watched.hook = implementation
            try:
                if two:
                    await function(known[one], known[two])
                elif one:
                    await function(known[one])
                elif directly:
                    await function()
                else:
                    await _invoked(implementation, known)
            except BaseException as error:  # noqa: BLE001 - sorted out there
                _sort_out(implementation, error, watched, vital=vital)
                failing.add(implementation)
            else:
                if failing:
                    implementation.failures = 0
                    failing.discard(implementation)
    finally:
        watched.hook = outer
        if watched.hook_late:
            take_back(watched)


async def first(
    implementations: Implementations,
    watched: Watched,
    known: Known,
    accept: Call,
    *,
    vital: bool,
) -> Any:
    """Call each until one answers with something but None; otherwise as ``walk``.

    Args:
        accept: Given the answer; raises where no hook may answer so.
    """
    for implementation in implementations:
        try:
            answer = await call(implementation, watched, known)
            accepted = None if answer is None else accept(answer)
        except BaseException as error:  # noqa: BLE001 - sorted out there
            _sort_out(implementation, error, watched, vital=vital)
        else:
            implementation.failures = 0
            if accepted is not None:
                return accepted
    return None


async def _invoked(implementation: Implementation, known: Any) -> Any:
    answer = implementation.invoke(known)
    if implementation.is_async or (answer is not None and inspect.isawaitable(answer)):
        answer = await answer
    return answer


def _sort_out(
    implementation: Implementation, error: BaseException, watched: Watched, *, vital: bool
) -> None:
    """Raise what ends the walk, and count what does not."""
    reason = because(error, watched)
    if not isinstance(reason, Exception):
        raise reason
    if implementation.hook == ENDS_TASKS and isinstance(reason, CONTROL_FLOW):
        raise reason
    refuses = implementation.hook == MAY_REFUSE and isinstance(reason, StartError)
    if vital and (implementation.member.required or refuses):
        raise implementation.error(reason) from reason
    implementation.failed(reason)


def because(error: BaseException, watched: Watched) -> BaseException:
    """What really happened, with what was raised as its cause where that is something else."""
    reason = reason_of(error, watched)
    if reason is not error:
        reason.__cause__ = error
    return reason


def reason_of(error: BaseException, watched: Watched) -> BaseException:
    """What really happened: the clock, the plugin and others may all have cancelled the task."""
    late = take_back(watched)
    if isinstance(error, Exception | GeneratorExit):
        return error
    if not isinstance(error, asyncio.CancelledError):
        return RuntimeError(f"it raised {error!r}")
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return error
    if late:
        return TimeoutError("it took longer than hook_timeout and was cancelled")
    return RuntimeError("it raised CancelledError, and nobody had asked it to stop")


def take_back(watched: Watched) -> int:
    """What the clock has cancelled is not cancelled any more; what others have still is."""
    late, watched.hook_late = watched.hook_late, 0
    task = asyncio.current_task()
    for _ in range(late):
        if task is not None:
            task.uncancel()
    return late
