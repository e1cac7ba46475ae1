"""Which task the code that runs now belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagnats_worker._context import BaseContext

current: ContextVar[BaseContext | None] = ContextVar("current task", default=None)


def current_context() -> BaseContext | None:
    """The context of the task that the calling code belongs to; None where there is none.

    A task's are its hooks, its handler, and the threads and asyncio tasks that these start; not the
    process that runs a handler.
    """
    return current.get()
