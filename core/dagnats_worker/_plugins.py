"""The plugins of one worker: put in order, checked against the specifications, and compiled."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import pluggy

from dagnats_worker import _hook_calls, hookspecs
from dagnats_worker._context import BaseContext, inflight_of
from dagnats_worker._hook_calls import (
    Caller,
    Implementation,
    Implementations,
    Member,
    Scope,
    TracedImplementation,
    Watched,
)
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import PROJECT, Plugin, PluginState

TRACE_VARIABLE = "DAGNATS_WORKER_TRACE_PLUGINS"

SCOPES = ("worker_scope", "task_scope", "outcome_scope", "child_scope")
HOOKS = (
    "worker_scope",
    "open_source",
    "task_scope",
    "pre_handle",
    "pre_publish",
    "on_error",
    "outcome_scope",
    "on_complete",
    "child_scope",
)
EVERYBODY = "*"
FORBIDDEN_OPTIONS = ("wrapper", "hookwrapper")


class Hooks:
    """The hooks of a worker's plugins, compiled into tuples; an empty tuple is a hook nobody has.

    Args:
        plugins: Each is required, which is what naming it in code means.
        members: Instead of ``plugins``, where not all are required.
    """

    worker_scope: Implementations
    open_source: Implementations
    task_scope: Implementations
    pre_handle: Implementations
    pre_publish: Implementations
    on_error: Implementations
    outcome_scope: Implementations
    on_complete: Implementations
    child_scope: Implementations

    def __init__(
        self, plugins: Sequence[Plugin[Any]] = (), members: Sequence[Member] | None = None
    ) -> None:
        if members is None:
            members = [Member(_a_plugin(one), required=True) for one in plugins]
        self.members = _checked(in_order(members))
        self.callers: WeakSet[Caller] = WeakSet()
        self._traced = bool(os.environ.get(TRACE_VARIABLE))
        self._compile()

    @property
    def plugins(self) -> tuple[Plugin[Any], ...]:
        return tuple(member.plugin for member in self.members if member.state == "active")

    @property
    def states(self) -> tuple[PluginState, ...]:
        return tuple(PluginState(one.name, one.version, one.state) for one in self.members)

    def _compile(self) -> None:
        manager = _manager(self.plugins)
        by_name = {member.name: member for member in self.members}
        kind = TracedImplementation if self._traced else Implementation
        for hook in HOOKS:
            impls = {one.plugin_name: one for one in getattr(manager.hook, hook).get_hookimpls()}
            compiled = tuple(
                kind(hook, by_name[name], impls[name].function, impls[name].argnames)
                for name in by_name
                if name in impls
            )
            setattr(self, hook, compiled)

    def drop_left(self) -> None:
        """Compile again without the plugins that have left; called when one may have."""
        present = {one.member for hook in HOOKS for one in getattr(self, hook)}
        if any(member.state != "active" for member in present):
            self._compile()

    def _watched(self, known: dict[str, Any]) -> Watched:
        ctx = known.get("ctx")
        if isinstance(ctx, BaseContext):
            return inflight_of(ctx)
        caller = Caller()
        self.callers.add(caller)
        return caller

    # ------------------------------------------------------------------ the four verbs

    async def require(self, implementations: Implementations, **known: Any) -> None:
        """Call each; the first error of a required plugin stops the walk."""
        await _hook_calls.require(implementations, self._watched(known), known)

    async def notify(self, implementations: Implementations, **known: Any) -> None:
        """Call each; errors are logged."""
        await _hook_calls.notify(implementations, self._watched(known), known)

    async def first(
        self, implementations: Implementations, *, vital: bool = False, **known: Any
    ) -> Any:
        """Call each until one answers with something.

        Args:
            vital: The error of a required plugin is raised; else every error is logged.
        """
        verb = _hook_calls.first_required if vital else _hook_calls.first
        return await verb(implementations, self._watched(known), known)

    def scope(
        self,
        implementations: Implementations,
        *,
        vital: bool = True,
        removes: bool = False,
        **known: Any,
    ) -> Scope:
        """Enter the context manager of each; they are left in reverse order. See ``Scope``."""
        return Scope(implementations, self._watched(known), known, vital=vital, removes=removes)


def _a_plugin(thing: Plugin[Any]) -> Plugin[Any]:
    if not isinstance(thing, Plugin):
        raise PluginError(f"{thing!r} is not an instance of a Plugin subclass")
    if not isinstance(getattr(thing, "name", None), str) or not thing.name:
        raise PluginError(f"plugin class {type(thing).__name__} has no name; give it one as `name`")
    return thing


# ---------------------------------------------------------------------- order


def in_order(members: Sequence[Member]) -> list[Member]:
    """Sort by ``before`` and ``after``; where these say nothing, the given order stays.

    Raises:
        PluginError: Two plugins have one name, or their wishes form a ring.
    """
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise PluginError(f"two plugins are called {name!r}; leave one of them out")
    waiting = list(members)
    ordered: list[Member] = []
    while waiting:
        ready = _ready(waiting, _goes_first) or _ready(waiting, _is_named_first)
        if ready is None:
            ring = ", ".join(repr(member.name) for member in waiting)
            raise PluginError(f"the before and after of the plugins {ring} contradict each other")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


Precedes = Callable[[Plugin[Any], Plugin[Any]], bool]


def _ready(waiting: Sequence[Member], precedes: Precedes) -> Member | None:
    """The first one that no other one precedes."""
    for member in waiting:
        others = (other for other in waiting if other is not member)
        if not any(precedes(other.plugin, member.plugin) for other in others):
            return member
    return None


def _goes_first(one: Plugin[Any], other: Plugin[Any]) -> bool:
    """A wish that names the other plugin is stronger than ``*``, and two ``*`` cancel each other."""
    if _is_named_first(one, other) or _is_named_first(other, one):
        return _is_named_first(one, other)
    return _is_starred_first(one, other) and not _is_starred_first(other, one)


def _is_named_first(one: Plugin[Any], other: Plugin[Any]) -> bool:
    return other.name in one.before or one.name in other.after


def _is_starred_first(one: Plugin[Any], other: Plugin[Any]) -> bool:
    return EVERYBODY in one.before or EVERYBODY in other.after


# ---------------------------------------------------------------------- checks


def _manager(plugins: Sequence[Plugin[Any]]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        manager.register(plugin, name=plugin.name)
    return manager


def _checked(members: Sequence[Member]) -> tuple[Member, ...]:
    """Check each against the specifications; an optional one that is wrong leaves."""
    for member in members:
        try:
            _check(member.plugin)
        except PluginError as error:
            if member.required:
                raise
            member.failed(error, "checking its hooks")
            member.leave("failed")
    return tuple(members)


def _check(plugin: Plugin[Any]) -> None:
    try:
        manager = _manager([plugin])
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_explain(plugin, str(error))) from error
    for caller in manager.get_hookcallers(plugin) or ():
        for impl in caller.get_hookimpls():
            _check_implementation(plugin.name, caller.name, impl)


def _explain(plugin: Plugin[Any], text: str) -> str:
    for name in dir(type(plugin)):
        marked = hasattr(getattr(type(plugin), name, None), f"{PROJECT}_impl")
        if marked and name not in HOOKS:
            return f"plugin {plugin.name!r}: there is no hook {name!r}; {_closest(name, HOOKS)}"
        if marked:
            wrong = _wrong_argument(type(plugin), name)
            if wrong:
                return f"plugin {plugin.name!r}, {name}: {wrong}"
    return f"plugin {plugin.name!r}: {' '.join(text.split())}"


def _wrong_argument(plugin_type: type[Any], hook: str) -> str:
    known = tuple(inspect.signature(getattr(hookspecs, hook)).parameters)
    names = list(inspect.signature(getattr(plugin_type, hook)).parameters)[1:]
    for name in names:
        if name not in known:
            return f"there is no argument {name!r}; {_closest(name, known)}"
    return ""


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def _check_implementation(plugin_name: str, hook: str, impl: pluggy.HookImpl) -> None:
    for option in FORBIDDEN_OPTIONS:
        if getattr(impl, option):
            raise PluginError(
                f"plugin {plugin_name!r}, {hook}: {option}=True does not work with coroutines; "
                "use a scope, which is an async context manager"
            )
    if hook in SCOPES and not _may_be_scope(hook, impl.function):
        decorator = "contextmanager" if hook == "child_scope" else "asynccontextmanager"
        raise PluginError(
            f"plugin {plugin_name!r}, {hook}: a scope returns a context manager; put "
            f"@{decorator} below @hookimpl"
        )


def _may_be_scope(hook: str, function: Callable[..., Any]) -> bool:
    """Whether calling it may give the context manager of that kind; a decorator leaves a trace."""
    if (
        inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
        or inspect.isgeneratorfunction(function)
    ):
        return False
    decorated = inspect.unwrap(function)
    if hook == "child_scope":
        return not inspect.isasyncgenfunction(decorated)
    return not inspect.isgeneratorfunction(decorated)
