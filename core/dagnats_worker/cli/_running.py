"""Running the async body of a command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; it is cancelled, and can clean up, on Ctrl-C and on SIGTERM.

    Raises:
        SystemExit: With code 130 on Ctrl-C and 143 on SIGTERM, and without a word.
    """
    with asyncio.Runner() as runner:
        try:
            return runner.run(_until_terminated(main))
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        except asyncio.CancelledError:
            raise SystemExit(EXIT_TERMINATED) from None


async def _until_terminated(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None, "runs in a task of the runner"
    with suppress(NotImplementedError):  # an event loop without signals, as on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await main
