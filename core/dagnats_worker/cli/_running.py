"""Running the async body of a command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_TERMINATED = 128 + signal.SIGTERM


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; SIGTERM ends it as Ctrl-C does, so that it can clean up.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, with code 143.
    """
    with asyncio.Runner() as runner:
        try:
            return runner.run(_until_terminated(main))
        except asyncio.CancelledError:
            raise SystemExit(EXIT_TERMINATED) from None


async def _until_terminated(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None, "runs in a task of the runner"
    with suppress(NotImplementedError):  # an event loop without signals, as on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await main
