"""The scopes of plugins: several context managers as one, none of which can change the verdict."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from dagnats_worker._hook_calls import (
    Call,
    Implementation,
    Known,
    Member,
    Watched,
    because,
    take_back,
)

AsyncScope = AbstractAsyncContextManager[None]
Exit = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
NO_ERROR: Exit = (None, None, None)


class ScopeImplementation(Implementation):
    """One plugin's implementation of a scope.

    Attributes:
        make: Makes the context manager.
        directly: It is entered by whoever walks the scopes, without a function between.
        entry: Makes the context manager and enters it; its answer is the context manager.
        exit: Leaves it.
    """

    __slots__ = ("directly", "entry", "exit", "make")

    def __init__(
        self,
        hook: str,
        member: Member,
        function: Callable[..., Any],
        invoke: Call,
        wrap: Callable[[str, Member, Call], Call] | None,
    ) -> None:
        super().__init__(hook, member, function, invoke, is_async=False)
        kinds: set[type[Any]] = set()

        def make(known: Known) -> AsyncScope:
            manager: AsyncScope = invoke(known)
            if type(manager) not in kinds:  # to ask an abstract class costs as much as the call
                if not isinstance(manager, AbstractAsyncContextManager):
                    raise TypeError(
                        f"it returned {manager!r}, which is not an async context manager"
                    )
                kinds.add(type(manager))
            return manager

        async def enter(known: Known) -> AsyncScope:
            manager = make(known)
            await manager.__aenter__()
            return manager

        def leave(left: tuple[AsyncScope, Exit]) -> Coroutine[Any, Any, bool | None]:
            manager, reason = left
            return manager.__aexit__(*reason)

        self.make = make
        self.directly = wrap is None
        self.entry = self._part("entering", enter, wrap)
        self.exit = self._part("leaving", leave, wrap)

    def _part(
        self, doing: str, invoke: Call, wrap: Callable[[str, Member, Call], Call] | None
    ) -> Implementation:
        label = f"{doing} {self.hook}"
        wrapped = invoke if wrap is None else wrap(label, self.member, invoke)
        return Implementation(
            self.hook, self.member, self.function, wrapped, is_async=True, label=label
        )


class Scope(AbstractAsyncContextManager[None]):
    """The scopes of several plugins as one; they are left in reverse order.

    None of them can swallow an exception, or change anything by an error at its end.

    Args:
        watched: What the clock looks at, where that is known.
        watch: Makes it otherwise; asked again at the end, which may be in another task.
        vital: The error of a required plugin on entry is raised; else every error is logged only.
        removes: An optional plugin that fails on entry is not called any more.
    """

    __slots__ = (
        "_entered",
        "_implementations",
        "_known",
        "_removes",
        "_vital",
        "_watch",
        "_watched",
    )

    def __init__(
        self,
        implementations: Sequence[Implementation],
        watched: Watched | None,
        watch: Callable[[Known], Watched],
        known: Known,
        *,
        vital: bool,
        removes: bool,
    ) -> None:
        self._implementations = implementations
        self._watched = watched
        self._watch = watch
        self._known = known
        self._vital = vital
        self._removes = removes
        self._entered: list[tuple[ScopeImplementation, AsyncScope]] = []

    # Every task enters and leaves scopes, so the calls are made here, as ``walk`` does, without a
    # function between.

    async def __aenter__(self) -> None:
        known = self._known
        watched = self._watched or self._watch(known)
        outer = watched.hook
        try:
            for implementation in self._implementations:
                assert isinstance(implementation, ScopeImplementation), "compiled as a scope"
                entry = watched.hook = implementation.entry
                try:
                    if implementation.directly:
                        manager = implementation.make(known)
                        await manager.__aenter__()
                    else:
                        manager = await entry.invoke(known)
                except BaseException as error:  # noqa: BLE001 - sorted out there
                    self._sort_out(implementation, error, watched)
                else:
                    entry.failures = 0
                    self._entered.append((implementation, manager))
        except BaseException as error:
            await self._leave((type(error), error, error.__traceback__), watched)
            raise
        finally:
            watched.hook = outer
            if watched.hook_late:
                take_back(watched)

    def _sort_out(
        self, implementation: ScopeImplementation, error: BaseException, watched: Watched
    ) -> None:
        """Raise what keeps the scope from being entered, and count what does not."""
        reason = because(error, watched)
        if not isinstance(reason, Exception):
            raise reason
        if self._vital and implementation.member.required:
            raise implementation.entry.error(reason) from reason
        implementation.entry.failed(reason)
        if self._removes:
            implementation.member.leave("failed")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        watched = self._watched or self._watch(self._known)
        await self._leave((kind, error, traceback), watched)

    async def _leave(self, left: Exit, watched: Watched) -> None:
        interrupted: BaseException | None = None
        outer = watched.hook
        try:
            while self._entered:
                implementation, manager = self._entered.pop()
                leaving = watched.hook = implementation.exit
                try:
                    await leaving.invoke((manager, left))
                except BaseException as error:  # the end of a scope cannot change the verdict
                    raised = because(error, watched)
                    if isinstance(raised, GeneratorExit):
                        raise
                    if raised is not left[1]:
                        interrupted = _not_told(leaving, raised) or interrupted
                else:
                    leaving.failures = 0
        finally:
            watched.hook = outer
            if watched.hook_late:
                take_back(watched)
        if interrupted is not None:
            raise interrupted


def _not_told(leaving: Implementation, raised: BaseException) -> BaseException | None:
    """Tell of what a scope has raised at its end, unless it is its task that is to end."""
    if isinstance(raised, Exception):
        leaving.failed(raised)
        return None
    return raised
