"""Plugins: put in order, checked, and called."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import pluggy

from dagnats_worker import hookspecs
from dagnats_worker.errors import DelayTask, EndTask, PluginError, SkipTask, describe
from dagnats_worker.hookspecs import PROJECT, Plugin

logger = logging.getLogger("dagnats_worker.plugins")

SCOPES = ("worker_scope", "task_scope", "outcome_scope", "child_scope")
FORBIDDEN_OPTIONS = ("wrapper", "hookwrapper")
CONTROL_FLOW = (EndTask, DelayTask, SkipTask)

AsyncScope = AbstractAsyncContextManager[None]


class Implementation:
    """One plugin's implementation of one hook."""

    __slots__ = ("arguments", "function", "hook", "plugin_name")

    def __init__(self, hook: str, plugin_name: str, impl: pluggy.HookImpl) -> None:
        self.hook = hook
        self.plugin_name = plugin_name
        self.function: Callable[..., Any] = impl.function
        self.arguments = impl.argnames

    def __call__(self, known: dict[str, Any]) -> Any:
        return self.function(*[known[name] for name in self.arguments])

    def error(self, error: BaseException) -> PluginError:
        return PluginError(f"plugin {self.plugin_name!r}, {self.hook}: {describe(error)}")

    def log(self, error: BaseException) -> None:
        logger.error("%s", self.error(error), exc_info=error)


Implementations = tuple[Implementation, ...]


class Hooks:
    """The hooks of a worker's plugins, compiled into tuples; an empty tuple is a hook nobody has."""

    def __init__(self, plugins: Sequence[Plugin[Any]] = ()) -> None:
        self.plugins = in_order(plugins)
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        for plugin in self.plugins:
            _register(manager, plugin)
        self.worker_scope = _compile(manager, "worker_scope")
        self.open_source = _compile(manager, "open_source")
        self.task_scope = _compile(manager, "task_scope")
        self.pre_handle = _compile(manager, "pre_handle")
        self.pre_publish = _compile(manager, "pre_publish")
        self.on_error = _compile(manager, "on_error")
        self.outcome_scope = _compile(manager, "outcome_scope")
        self.on_complete = _compile(manager, "on_complete")
        self.child_scope = _compile(manager, "child_scope")

    async def require(self, implementations: Implementations, **known: Any) -> None:
        """Call each; the first error stops the walk."""
        for implementation in implementations:
            try:
                answer = implementation(known)
                if inspect.isawaitable(answer):
                    await answer
            except CONTROL_FLOW:
                raise
            except Exception as error:
                raise implementation.error(error) from error

    async def notify(self, implementations: Implementations, **known: Any) -> None:
        """Call each; errors are logged."""
        for implementation in implementations:
            try:
                answer = implementation(known)
                if inspect.isawaitable(answer):
                    await answer
            except Exception as error:  # noqa: BLE001 - nothing a plugin raises may change the walk here
                implementation.log(error)

    async def answer(self, implementation: Implementation, **known: Any) -> Any:
        """Call one; its error is raised."""
        try:
            answer = implementation(known)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            raise implementation.error(error) from error

    async def first(self, implementations: Implementations, **known: Any) -> Any:
        """Call each until one answers with something; errors are logged."""
        for implementation in implementations:
            try:
                answer = implementation(known)
                if inspect.isawaitable(answer):
                    answer = await answer
            except Exception as error:  # noqa: BLE001 - nothing a plugin raises may change the walk here
                implementation.log(error)
            else:
                if answer is not None:
                    return answer
        return None

    def scope(self, implementations: Implementations, **known: Any) -> AsyncScope:
        """Enter the context manager of each; they are left in reverse order."""
        return _Scope(implementations, known)


class _Scope(AbstractAsyncContextManager[None]):
    """Several context managers as one, none of which can swallow an exception or raise at its end."""

    __slots__ = ("_entered", "_implementations", "_known")

    def __init__(self, implementations: Implementations, known: dict[str, Any]) -> None:
        self._implementations = implementations
        self._known = known
        self._entered: list[tuple[Implementation, AsyncScope]] = []

    async def __aenter__(self) -> None:
        for implementation in self._implementations:
            try:
                manager = implementation(self._known)
                await manager.__aenter__()
            except BaseException as error:
                await self.__aexit__(type(error), error, error.__traceback__)
                if isinstance(error, Exception):
                    raise implementation.error(error) from error
                raise
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
            try:
                await manager.__aexit__(kind, error, traceback)
            except asyncio.CancelledError as cancelled:
                if cancelled is not error:
                    interrupted = cancelled
            except Exception as left:  # noqa: BLE001 - the end of a scope cannot change the verdict
                if left is not error:
                    implementation.log(left)
        if interrupted is not None:
            raise interrupted


def in_order(plugins: Sequence[Plugin[Any]]) -> tuple[Plugin[Any], ...]:
    """Sort by ``before`` and ``after``; where these say nothing, the given order stays.

    Raises:
        PluginError: Two plugins have one name, or their wishes form a ring.
    """
    names = [plugin.name for plugin in plugins]
    for name in names:
        if names.count(name) > 1:
            raise PluginError(f"two plugins are called {name!r}; leave one of them out")
    waiting = list(plugins)
    sorted_: list[Plugin[Any]] = []
    while waiting:
        ready = next((one for one in waiting if not _must_wait(one, waiting)), None)
        if ready is None:
            ring = ", ".join(repr(plugin.name) for plugin in waiting)
            raise PluginError(f"the before and after of the plugins {ring} contradict each other")
        waiting.remove(ready)
        sorted_.append(ready)
    return tuple(sorted_)


def _must_wait(plugin: Plugin[Any], waiting: Sequence[Plugin[Any]]) -> bool:
    return any(
        other is not plugin and (_named(other, plugin.after) or _named(plugin, other.before))
        if not _stronger(plugin, other)
        else False
        for other in waiting
    )


def _named(plugin: Plugin[Any], names: tuple[str, ...]) -> bool:
    return plugin.name in names or "*" in names


def _stronger(plugin: Plugin[Any], other: Plugin[Any]) -> bool:
    """A wish that names the other plugin is stronger than the other's ``*``."""
    return other.name in plugin.before and plugin.name not in other.before


def _register(manager: pluggy.PluginManager, plugin: Plugin[Any]) -> None:
    if not isinstance(plugin, Plugin):
        raise PluginError(f"{plugin!r} is not a plugin; give an instance of a Plugin subclass")
    try:
        manager.register(plugin, name=plugin.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_explain(plugin, str(error))) from error
    for caller in manager.get_hookcallers(plugin) or ():
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin:
                _check(plugin.name, caller.name, impl)


def _explain(plugin: Plugin[Any], text: str) -> str:
    known = [
        name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{PROJECT}_spec")
    ]
    for name in dir(type(plugin)):
        marked = hasattr(getattr(type(plugin), name, None), f"{PROJECT}_impl")
        if marked and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
            return f"plugin {plugin.name!r}: there is no hook {name!r}{hint}"
    return f"plugin {plugin.name!r}: {' '.join(text.split())}"


def _check(plugin_name: str, hook: str, impl: pluggy.HookImpl) -> None:
    for option in FORBIDDEN_OPTIONS:
        if getattr(impl, option):
            raise PluginError(
                f"plugin {plugin_name!r}, {hook}: {option}=True does not work with coroutines; "
                "use a scope, which is an async context manager"
            )
    if hook in SCOPES and (
        inspect.iscoroutinefunction(impl.function) or inspect.isasyncgenfunction(impl.function)
    ):
        decorator = "contextmanager" if hook == "child_scope" else "asynccontextmanager"
        raise PluginError(
            f"plugin {plugin_name!r}, {hook}: a scope returns a context manager; put "
            f"@{decorator} below @hookimpl"
        )


def _compile(manager: pluggy.PluginManager, hook: str) -> Implementations:
    impls = getattr(manager.hook, hook).get_hookimpls()
    by_plugin = {impl.plugin_name: impl for impl in impls}
    ordered = [name for name, _ in manager.list_name_plugin() if name in by_plugin]
    return tuple(Implementation(hook, name, by_plugin[name]) for name in ordered)
