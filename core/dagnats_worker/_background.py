"""What plugins run beside the tasks: supervised, so that it never ends the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from time import monotonic
from typing import Any

from dagnats_worker.errors import UsageError

logger = logging.getLogger("dagnats_worker.plugins")

RESTART_WAIT_FIRST_S = 0.5
RESTART_WAIT_MAX_S = 60.0
END_WAIT_S = 2.0

Make = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """The background work of the plugins of one worker."""

    def __init__(self) -> None:
        self._owners: dict[asyncio.Task[Any], str] = {}

    def spawn(self, make: Make, name: str, owner: str) -> Callable[[], Awaitable[None]]:
        """Run a coroutine function, again and again where it fails; returns what ends it."""
        if asyncio.iscoroutine(make):
            make.close()
            raise UsageError(f"{name}: hand over the coroutine function, and not its coroutine")
        task = asyncio.create_task(_keep_running(make, f"plugin {owner!r}, {name}"), name=name)
        self._owners[task] = owner
        task.add_done_callback(lambda done: self._owners.pop(done, None))

        async def end() -> None:
            await _end([task])

        return end

    def describe(self, task: asyncio.Task[Any]) -> str:
        """Whose work a task is; empty where it is none."""
        owner = self._owners.get(task)
        return "" if owner is None else f"plugin {owner!r} in {task.get_name()!r}"

    async def end(self, owner: str) -> None:
        """End what one plugin has begun."""
        await _end([task for task, whose in self._owners.items() if whose == owner])

    async def close(self) -> None:
        """End everything."""
        await _end(list(self._owners))


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel, and wait as long as anybody may need to clean up."""
    others = [task for task in tasks if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if not others:
        return
    _, pending = await asyncio.wait(others, timeout=END_WAIT_S)
    for task in pending:
        logger.error("%s ignores that it is cancelled, and is left behind", task.get_name())


async def _keep_running(make: Make, what: str) -> None:
    wait_s = RESTART_WAIT_FIRST_S
    while True:
        began = monotonic()
        try:
            await make()
        except asyncio.CancelledError:
            if _asked_to_stop():
                raise
            logger.exception("%s was cancelled, and nobody had asked it to stop", what)
        except GeneratorExit:
            raise
        except BaseException:  # a plugin's background work never ends the worker
            logger.exception("%s failed; it is started again in %.1f s", what, wait_s)
        else:
            return
        if monotonic() - began > RESTART_WAIT_MAX_S:
            wait_s = RESTART_WAIT_FIRST_S
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, RESTART_WAIT_MAX_S)


def _asked_to_stop() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
