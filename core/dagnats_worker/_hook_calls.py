"""Calling the hooks of plugins: awaited in order, bounded in time, isolated from each other."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Protocol

from dagnats_worker.errors import DelayTask, EndTask, PluginError, SkipTask, describe
from dagnats_worker.hookspecs import Plugin

logger = logging.getLogger("dagnats_worker.plugins")
trace_logger = logging.getLogger("dagnats_worker.plugins.trace")

FAILURES_MAX_DEFAULT = 10

CONTROL_FLOW = (EndTask, DelayTask, SkipTask)

MemberState = Literal["active", "quarantined", "failed"]
AsyncScope = AbstractAsyncContextManager[None]


class Member:
    """A plugin of one worker, and how it behaves.

    Attributes:
        required: Its errors give tasks back, or stop the start; an optional plugin is skipped.
        failures: In a row, up to now.
        reason: Of the last failure.
    """

    __slots__ = (
        "failures",
        "failures_max",
        "name",
        "plugin",
        "reason",
        "required",
        "state",
        "version",
    )

    def __init__(
        self,
        plugin: Plugin[Any],
        *,
        required: bool,
        version: str = "",
        failures_max: int = FAILURES_MAX_DEFAULT,
    ) -> None:
        self.plugin = plugin
        self.name = plugin.name
        self.version = version
        self.required = required
        self.failures = 0
        self.failures_max = failures_max
        self.state: MemberState = "active"
        self.reason = ""

    def failed(self, error: BaseException, where: str) -> None:
        """Count a failure that changes nothing for the task; too many in a row, and that was it."""
        self.reason = f"{where}: {describe(error)}"
        logger.error("plugin %r, %s", self.name, self.reason, exc_info=error)
        if self.required:
            return
        self.failures += 1
        if self.failures >= self.failures_max and self.state == "active":
            self.leave("quarantined")

    def leave(self, state: MemberState) -> None:
        """Call none of this plugin's hooks any more."""
        self.state = state
        logger.error("plugin %r is not called any more (%s): %s", self.name, state, self.reason)


class Watched(Protocol):
    """Something that awaits hooks, and can be told by the watchdog that one takes too long."""

    task: asyncio.Task[Any] | None
    hook: Implementation | None
    hook_since: float
    hook_late: bool


class Caller:
    """What awaits the hooks of a worker, as an ``InFlight`` awaits those of a task."""

    __slots__ = ("__weakref__", "hook", "hook_late", "hook_since", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.hook: Implementation | None = None
        self.hook_since = 0.0
        self.hook_late = False


class Implementation:
    """One plugin's implementation of one hook."""

    __slots__ = ("_names", "function", "hook", "member")

    def __init__(
        self, hook: str, member: Member, function: Callable[..., Any], names: Sequence[str]
    ) -> None:
        self.hook = hook
        self.member = member
        self.function = function
        self._names = tuple(names)

    def __call__(self, known: dict[str, Any]) -> Any:
        return self.function(*[known[name] for name in self._names])

    def takes(self, name: str) -> bool:
        """Whether it wants this argument."""
        return name in self._names

    def error(self, error: BaseException) -> PluginError:
        return PluginError(f"plugin {self.member.name!r}, {self.hook}: {describe(error)}")


Implementations = tuple[Implementation, ...]


async def call(implementation: Implementation, watched: Watched, known: dict[str, Any]) -> Any:
    """Call one implementation and await it, for at most as long as the watchdog allows."""
    watched.hook_since = time.monotonic()
    watched.hook = implementation
    try:
        answer = implementation(known)
        if answer is None:
            return None
        return await answer if inspect.isawaitable(answer) else answer
    except asyncio.CancelledError as error:
        if not _was_late(watched):
            raise
        raise TimeoutError("it took too long and was cancelled") from error
    finally:
        watched.hook = None


def _was_late(watched: Watched) -> bool:
    """Whether the watchdog has cancelled the call, and nobody else the task."""
    if not watched.hook_late:
        return False
    watched.hook_late = False
    return watched.task is None or watched.task.uncancel() == 0


async def require(
    implementations: Implementations, watched: Watched, known: dict[str, Any]
) -> None:
    """Call each; the first error of a required plugin stops the walk."""
    for implementation in implementations:
        try:
            await call(implementation, watched, known)
        except CONTROL_FLOW:
            raise
        except Exception as error:
            if implementation.member.required:
                raise implementation.error(error) from error
            implementation.member.failed(error, implementation.hook)
        else:
            implementation.member.failures = 0


async def notify(implementations: Implementations, watched: Watched, known: dict[str, Any]) -> None:
    """Call each; errors are logged."""
    for implementation in implementations:
        try:
            await call(implementation, watched, known)
        except Exception as error:  # noqa: BLE001 - nothing a plugin raises may change the walk here
            implementation.member.failed(error, implementation.hook)


async def first(implementations: Implementations, watched: Watched, known: dict[str, Any]) -> Any:
    """Call each until one answers with something; errors are logged."""
    for implementation in implementations:
        try:
            answer = await call(implementation, watched, known)
        except Exception as error:  # noqa: BLE001 - nothing a plugin raises may change the walk here
            implementation.member.failed(error, implementation.hook)
        else:
            if answer is not None:
                return answer
    return None


async def first_required(
    implementations: Implementations, watched: Watched, known: dict[str, Any]
) -> Any:
    """As ``first``, but the error of a required plugin is raised."""
    for implementation in implementations:
        try:
            answer = await call(implementation, watched, known)
        except Exception as error:
            if implementation.member.required:
                raise implementation.error(error) from error
            implementation.member.failed(error, implementation.hook)
        else:
            if answer is not None:
                return answer
    return None


class Scope(AbstractAsyncContextManager[None]):
    """Several context managers as one, none of which can swallow an exception or raise at its end.

    Args:
        vital: The error of a required plugin on entry is raised; else every error is logged only.
        removes: An optional plugin that fails on entry is not called any more.
    """

    __slots__ = ("_entered", "_implementations", "_known", "_removes", "_vital", "_watched")

    def __init__(
        self,
        implementations: Implementations,
        watched: Watched,
        known: dict[str, Any],
        *,
        vital: bool = True,
        removes: bool = False,
    ) -> None:
        self._implementations = implementations
        self._watched = watched
        self._known = known
        self._vital = vital
        self._removes = removes
        self._entered: list[tuple[Implementation, AsyncScope]] = []

    async def __aenter__(self) -> None:
        for implementation in self._implementations:
            try:
                manager = implementation(self._known)
                await call(_part(implementation, manager.__aenter__), self._watched, {})
            except Exception as error:
                if self._vital and implementation.member.required:
                    raised = implementation.error(error)
                    await self.__aexit__(type(raised), raised, raised.__traceback__)
                    raise raised from error
                implementation.member.failed(error, f"entering {implementation.hook}")
                if self._removes and implementation.member.state == "active":
                    implementation.member.leave("failed")
            except BaseException as error:
                await self.__aexit__(type(error), error, error.__traceback__)
                raise
            else:
                self._entered.append((implementation, manager))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted: asyncio.CancelledError | None = None
        while self._entered:
            implementation, manager = self._entered.pop()

            def leave(left: AsyncScope = manager) -> Any:
                return left.__aexit__(kind, error, traceback)

            try:
                await call(_part(implementation, leave), self._watched, {})
            except asyncio.CancelledError as cancelled:
                if cancelled is not error:
                    interrupted = cancelled
            except Exception as raised:  # noqa: BLE001 - the end of a scope cannot change the verdict
                if raised is not error:
                    implementation.member.failed(raised, f"leaving {implementation.hook}")
        if interrupted is not None:
            raise interrupted


def _part(implementation: Implementation, function: Callable[[], Any]) -> Implementation:
    return Implementation(implementation.hook, implementation.member, function, ())


class TracedImplementation(Implementation):
    """An implementation that logs each call with its duration."""

    __slots__ = ()

    def __call__(self, known: dict[str, Any]) -> Any:
        began = time.perf_counter()
        answer = super().__call__(known)
        if inspect.isawaitable(answer):
            return self._awaited(answer, began)
        self._log(began)
        return answer

    async def _awaited(self, answer: Any, began: float) -> Any:
        try:
            return await answer
        finally:
            self._log(began)

    def _log(self, began: float) -> None:
        took_ms = (time.perf_counter() - began) * 1000
        trace_logger.info("%s of %s took %.3f ms", self.hook, self.member.name, took_ms)
