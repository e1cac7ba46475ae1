"""The plugins of one worker: put in order, checked against the specifications, and compiled."""

from __future__ import annotations

import inspect
from asyncio import current_task
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter
from typing import Any
from weakref import WeakSet

import pluggy

from dagnats_worker._context import BaseContext, inflight_of
from dagnats_worker._hook_calls import (
    ARGUMENTS_MAX,
    LENIENT,
    VITAL,
    Call,
    Caller,
    Implementation,
    Implementations,
    Known,
    Member,
    Watched,
    first,
    walk,
)
from dagnats_worker._hook_scopes import Scope, ScopeImplementation
from dagnats_worker._hook_trace import traced, tracing
from dagnats_worker._plugin_checks import (
    HOOKS,
    OF_TASKS,
    SCOPES,
    a_plugin,
    check,
    manager_of,
    taken_arguments,
)
from dagnats_worker._plugin_order import in_order
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import Plugin, PluginState


def _anything(answer: Any) -> Any:
    return answer


class Hooks:
    """The hooks of a worker's plugins, compiled into tuples; an empty tuple is a hook nobody has.

    Args:
        plugins: Each is required, which is what naming it in code means.
        members: Instead of ``plugins``, where not all are required.
        left_out: Plugins that were found and are not used, for whoever asks why.
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
        self,
        plugins: Sequence[Plugin[Any]] = (),
        members: Sequence[Member] | None = None,
        left_out: Sequence[PluginState] = (),
    ) -> None:
        if members is None:
            members = [Member(a_plugin(one), required=True) for one in plugins]
        self.members = _checked(members)
        self.left_out = tuple(left_out)
        self.callers: WeakSet[Caller] = WeakSet()
        for member in self.members:
            member.on_leave = self._choose
        self._skipped: set[tuple[Member, str]] = set()
        self._compiled = self._compile()
        self._choose()

    @property
    def plugins(self) -> tuple[Plugin[Any], ...]:
        """Those that are called, in order."""
        return tuple(member.plugin for member in self.members if member.state == "active")

    @property
    def states(self) -> tuple[PluginState, ...]:
        """All of them, in order, and then those that were left out."""
        return (*(member.describe() for member in self.members), *self.left_out)

    def calling(self) -> Member | None:
        """Whose hook of the worker it is that runs now, and calls this."""
        for caller in list(self.callers):
            if caller.hook is not None and caller.task is current_task():
                return caller.hook.member
        return None

    # ------------------------------------------------------------------ compiling

    def _compile(self) -> dict[str, list[Implementation]]:
        by_name = {member.name: member for member in self.members}
        # pluggy calls the last one first, unless an implementation asks for something else.
        manager = manager_of(self.plugins[::-1])
        return {
            hook: [
                _compiled(hook, by_name[one.plugin_name], one)
                for one in getattr(manager.hook, hook).get_hookimpls()[::-1]
            ]
            for hook in HOOKS
        }

    def _choose(self) -> None:
        """Call those that have not left and are not skipped; a walk under way ends as it began."""
        for hook, implementations in self._compiled.items():
            chosen = (
                one
                for one in implementations
                if one.member.state == "active" and (one.member, hook) not in self._skipped
            )
            setattr(self, hook, Implementations(chosen))

    def skip(self, member: Member, hooks: Sequence[str]) -> None:
        """Call these hooks of a plugin no more.

        Raises:
            ValueError: One of them is not called for each task.
        """
        for hook in hooks:
            if hook not in OF_TASKS:
                raise ValueError(f"hook {hook!r} is not one of a task: {', '.join(OF_TASKS)}")
        self._skipped.update((member, hook) for hook in hooks)
        self._choose()

    def skip_none(self) -> None:
        """Call all of them again."""
        self._skipped.clear()
        self._choose()

    def _watched(self, known: Known) -> Watched:
        """What the clock looks at: the walk of the task, or this call where it is another task."""
        ctx = known.get("ctx")
        if isinstance(ctx, BaseContext):
            inflight = inflight_of(ctx)
            if inflight.task is current_task():
                return inflight
        caller = Caller()
        self.callers.add(caller)
        return caller

    # ------------------------------------------------------------------ the four verbs

    # Each takes what the clock is to look at, where the caller knows: to ask for the current task
    # costs as much as two calls of a hook.

    def require(
        self, implementations: Implementations, watched: Watched | None = None, /, **known: Any
    ) -> Awaitable[None]:
        """Call each; the first error of a required plugin stops the walk."""
        return walk(implementations, watched or self._watched(known), known, VITAL)

    def notify(
        self, implementations: Implementations, watched: Watched | None = None, /, **known: Any
    ) -> Awaitable[None]:
        """Call each; errors are logged."""
        return walk(implementations, watched or self._watched(known), known, LENIENT)

    def first(
        self,
        implementations: Implementations,
        watched: Watched | None = None,
        /,
        *,
        vital: bool = False,
        accept: Call = _anything,
        **known: Any,
    ) -> Awaitable[Any]:
        """Call each until one answers with something.

        Args:
            vital: The error of a required plugin is raised; else every error is logged.
            accept: Given the answer; raises where it is none that a hook may give.
        """
        watched = watched or self._watched(known)
        return first(implementations, watched, known, accept, vital=vital)

    def scope(
        self,
        implementations: Implementations,
        watched: Watched | None = None,
        /,
        *,
        vital: bool = True,
        removes: bool = False,
        **known: Any,
    ) -> Scope:
        """Enter the context manager of each; they are left in reverse order. See ``Scope``."""
        return Scope(implementations, watched, self._watched, known, vital=vital, removes=removes)


def _checked(members: Sequence[Member]) -> tuple[Member, ...]:
    """Check each, and put them in order; an optional one that is wrong leaves, and comes last."""
    for member in members:
        try:
            check(member.plugin)
        except PluginError as error:
            if member.required:
                raise
            member.failed(error, "checking its hooks")
            member.leave("failed")
    usable = in_order([member for member in members if member.state == "active"])
    return (*usable, *(member for member in members if member.state != "active"))


def _compiled(hook: str, member: Member, implementation: pluggy.HookImpl) -> Implementation:
    function = implementation.function
    invoke = _invoking(hook, function)
    wrap = traced if tracing() else None
    if hook in SCOPES and hook != "child_scope":
        return ScopeImplementation(hook, member, function, invoke, wrap)
    is_async = inspect.iscoroutinefunction(function)
    return Implementation(
        hook,
        member,
        function,
        invoke if wrap is None else wrap(hook, member, invoke),
        is_async=is_async,
        arguments=_few_arguments(hook, function) if is_async and wrap is None else None,
    )


def _few_arguments(hook: str, function: Callable[..., Any]) -> list[str] | None:
    """What makes an implementation one that can be called without a function between."""
    by_position, by_name = taken_arguments(hook, function)
    return None if by_name or len(by_position) > ARGUMENTS_MAX else by_position


def _invoking(hook: str, function: Callable[..., Any]) -> Call:
    """Make the function that picks out of what is known what an implementation takes."""
    by_position, by_name = taken_arguments(hook, function)
    if by_name:
        return lambda known: function(
            *(known[name] for name in by_position), **{name: known[name] for name in by_name}
        )
    match by_position:
        case []:
            return lambda _known: function()
        case [name]:
            return lambda known: function(known[name])
        case names:
            pick = itemgetter(*names)
            return lambda known: function(*pick(known))
