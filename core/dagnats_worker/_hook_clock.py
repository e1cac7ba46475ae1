"""The time limit of hooks: one look at all that are awaited, and no timer for any of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from time import monotonic

from dagnats_worker._hook_calls import Implementation, Seen, Watched

logger = logging.getLogger("dagnats_worker.plugins")

TICK_MAX_S = 0.1
TICKS_PER_LIMIT = 10


class HookClock:
    """Cancels hooks that take too long, for as long as it is open.

    A hook is awaited in the task that runs the handler, because ``asyncio.wait_for`` would lose its
    context variables on Python 3.11. So that task is cancelled, and whoever awaits the hook takes
    that back and knows that it was the clock; see ``_hook_calls.call``.

    Args:
        limit: For one call of one hook.
        watched: Everything that may await one now.
    """

    def __init__(self, limit: timedelta, watched: Callable[[], Iterable[Watched]]) -> None:
        self._limit_s = limit.total_seconds()
        self._watched = watched
        self._task = asyncio.create_task(self._tick(), name="dagnats-worker hook clock")

    async def close(self) -> None:
        """Watch no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_MAX_S, self._limit_s / TICKS_PER_LIMIT))
            now = monotonic()
            for watched in self._watched():
                self._look_at(watched, now)

    def _look_at(self, watched: Watched, now: float) -> None:
        hook = watched.hook
        if isinstance(hook, Implementation):
            watched.hook = Seen(hook, now)
        elif hook is not None and now - hook.since > self._limit_s:
            self._cancel(watched, hook, now)

    def _cancel(self, watched: Watched, hook: Seen, now: float) -> None:
        if watched.hook_late:
            logger.error(
                "plugin %r, %s ignores that it is cancelled; it is cancelled again",
                hook.member.name,
                hook.label,
            )
        hook.since = now  # it has the same time again to come to its end
        watched.hook_late += 1
        if watched.task is not None:
            watched.task.cancel()
