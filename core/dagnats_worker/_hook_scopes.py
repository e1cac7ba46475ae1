"""The scopes of plugins: several context managers as one, none of which can change the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        entry: Makes the context manager and enters it; its answer is the context manager.
        exit: Leaves it.
    """

    __slots__ = ("entry", "exit")

    def __init__(
        self,
        hook: str,
        member: Member,
        function: Callable[..., Any],
        invoke: Call,
        wrap: Callable[[str, Member, Call], Call],
    ) -> None:
        super().__init__(hook, member, function, invoke, is_async=False)

        async def enter(known: Known) -> AsyncScope:
            manager: AsyncScope = invoke(known)
            if not isinstance(manager, AbstractAsyncContextManager):
                raise TypeError(f"it returned {manager!r}, which is not an async context manager")
            await manager.__aenter__()
            return manager

        async def leave(left: tuple[AsyncScope, Exit]) -> None:
            manager, reason = left
            await manager.__aexit__(*reason)

        self.entry = self._part("entering", enter, wrap)
        self.exit = self._part("leaving", leave, wrap)

    def _part(
        self, doing: str, invoke: Call, wrap: Callable[[str, Member, Call], Call]
    ) -> Implementation:
        label = f"{doing} {self.hook}"
        wrapped = wrap(label, self.member, invoke)
        return Implementation(
            self.hook, self.member, self.function, wrapped, is_async=True, label=label
        )


class Scope(AbstractAsyncContextManager[None]):
    """The scopes of several plugins as one; they are left in reverse order.

    None of them can swallow an exception, or change anything by an error at its end.

    Args:
        watch: Makes what the clock looks at; asked again at the end, which may be in another task.
        vital: The error of a required plugin on entry is raised; else every error is logged only.
        removes: An optional plugin that fails on entry is not called any more.
    """

    __slots__ = ("_entered", "_implementations", "_known", "_removes", "_vital", "_watch")

    def __init__(
        self,
        implementations: Sequence[Implementation],
        watch: Callable[[Known], Watched],
        known: Known,
        *,
        vital: bool,
        removes: bool,
    ) -> None:
        self._implementations = implementations
        self._watch = watch
        self._known = known
        self._vital = vital
        self._removes = removes
        self._entered: list[tuple[ScopeImplementation, AsyncScope]] = []

    # Every task enters and leaves scopes, so the calls are made here, as ``walk`` does, without a
    # function between.

    async def __aenter__(self) -> None:
        watched, known = self._watch(self._known), self._known
        outer = watched.hook
        try:
            for implementation in self._implementations:
                assert isinstance(implementation, ScopeImplementation), "compiled as a scope"
                entry = watched.hook = implementation.entry
                try:
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
        await self._leave((kind, error, traceback), self._watch(self._known))

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
