"""Stands around each hook of one plugin: counts, measures, and cancels where it is asked to."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from dagnats_worker._hook_calls import CONTROL_FLOW
from dagnats_worker._plugin_checks import HOOKS, SCOPES
from dagnats_worker.hookspecs import PROJECT, Plugin

OTHER_PROCESS = "child_scope"
"""Called in a process where nothing of this exists."""


class Probe:
    """What the hooks of one plugin do.

    Args:
        plugin: Its hooks are wrapped in place.

    Attributes:
        calls: How often each part of a hook was called; a scope's parts are its two ends.
        open: Scopes that were entered and not left.
        errors: What hooks have raised, control flow and cancellation left out.
        longest_s: For each part, the longest time that each of its calls kept the event loop.
        swallowed: Parts that were cancelled while they waited, and went on.
    """

    def __init__(self, plugin: Plugin[Any]) -> None:
        self.plugin = plugin
        self.calls: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.errors: list[tuple[str, BaseException]] = []
        self.longest_s: defaultdict[str, list[float]] = defaultdict(list)
        self.swallowed: list[str] = []
        self._cancel_in: str | None = None
        for hook in implemented(type(plugin)):
            if hook != OTHER_PROCESS:
                setattr(plugin, hook, self._wrapped(hook, getattr(plugin, hook)))

    def cancel_once_in(self, part: str) -> None:
        """Cancel whoever calls this part of a hook, the next time that it waits for something."""
        self._cancel_in = part

    @property
    def was_cancelled(self) -> bool:
        """Whether the part that was to be cancelled has been called."""
        return self._cancel_in is None

    def _wrapped(self, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def scope(*arguments: Any) -> ProbedScope:
            manager, took_s = self._called(enter_of(hook), function, arguments)
            return ProbedScope(self, hook, manager, took_s)

        @functools.wraps(function)
        def plain(*arguments: Any) -> Any:
            answer, took_s = self._called(hook, function, arguments)
            if inspect.isawaitable(answer):
                return self.awaited(hook, answer, took_s)
            self.longest_s[hook].append(took_s)
            return answer

        return scope if hook in SCOPES else plain

    def _called(
        self, part: str, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> tuple[Any, float]:
        self.calls[part] += 1
        began = time.perf_counter()
        try:
            answer = function(*arguments)
        except CONTROL_FLOW:
            raise
        except Exception as error:
            self.errors.append((part, error))
            raise
        return answer, time.perf_counter() - began

    async def awaited(
        self,
        part: str,
        awaitable: Awaitable[Any],
        took_s: float = 0.0,
        passed_on: BaseException | None = None,
    ) -> Any:
        """Await a part of a hook, which may be the one that is to be cancelled.

        Args:
            took_s: How long it has taken to get the awaitable.
            passed_on: The error of the task, which is not the plugin's if it comes out again.
        """
        cancels = self._cancel_in == part
        if cancels:
            self._cancel_in = None
            task = asyncio.current_task()
            assert task is not None, "a hook runs in a task"
            task.cancel()
        steps = Stepwise(awaitable, took_s)
        try:
            answer = await steps
        except (*CONTROL_FLOW, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            if error is not passed_on:
                self.errors.append((part, error))
            raise
        finally:
            self.longest_s[part].append(steps.longest_s)
        if cancels:
            await asyncio.sleep(0)  # raises, unless the hook has kept the cancellation to itself
            self.swallowed.append(part)
        return answer


class ProbedScope(AbstractAsyncContextManager[None]):
    """A scope of a plugin, and a probe around both of its ends."""

    def __init__(
        self, probe: Probe, hook: str, scope: AbstractAsyncContextManager[None], took_s: float
    ) -> None:
        self._probe = probe
        self._hook = hook
        self._scope = scope
        self._took_s = took_s

    async def __aenter__(self) -> None:
        entering = self._scope.__aenter__()
        await self._probe.awaited(enter_of(self._hook), entering, self._took_s)
        self._probe.open[self._hook] += 1

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        part = leave_of(self._hook)
        self._probe.open[self._hook] -= 1
        self._probe.calls[part] += 1
        leaving = self._scope.__aexit__(kind, error, traceback)
        answer: bool | None = await self._probe.awaited(part, leaving, passed_on=error)
        return answer


class Stepwise:
    """Awaits something, and notes for how long at a time it keeps the event loop."""

    def __init__(self, awaitable: Awaitable[Any], longest_s: float) -> None:
        self._awaitable = awaitable
        self.longest_s = longest_s

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaitable.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                waits_for = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                self.longest_s = max(self.longest_s, time.perf_counter() - began)
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as raised:  # noqa: BLE001 - it is for what is awaited
                error = raised


def implemented(plugin_type: type[Plugin[Any]]) -> list[str]:
    """The hooks that a plugin implements."""
    return [hook for hook in HOOKS if hasattr(getattr(plugin_type, hook, None), f"{PROJECT}_impl")]


def parts_of(hook: str) -> list[str]:
    """What is called of a hook: a scope's two ends, or the hook itself."""
    return [enter_of(hook), leave_of(hook)] if hook in SCOPES else [hook]


def enter_of(hook: str) -> str:
    return f"{hook} (entering)"


def leave_of(hook: str) -> str:
    return f"{hook} (leaving)"
