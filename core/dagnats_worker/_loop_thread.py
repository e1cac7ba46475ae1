"""A thread with an event loop of its own, for what goes on while the worker's loop is blocked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

JOIN_WAIT_S = 2.0


class LoopThread:
    """Runs coroutines in a daemon thread, which never keeps the interpreter alive."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there; cancelled when the thread is closed."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(JOIN_WAIT_S)

    async def _wait_for(self, left: set[asyncio.Task[Any]]) -> None:
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # what they have closed is closed by the loop's next turn

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(self._wait_for(left))
        finally:
            self._loop.close()
