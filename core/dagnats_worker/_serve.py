"""Running a worker as a process: its loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagnats_worker._worker import Worker

logger = logging.getLogger("dagnats_worker.worker")

EXIT_CLEAN = 0
EXIT_BROKEN = 1
EXIT_GAVE_UP = 3
EXIT_FORCED = 130

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(worker: Worker) -> int:
    """Run a worker until a signal, and return the exit code.

    Returns:
        0 when every handler has ended by itself, 3 when some had to be cut off after
        ``drain_timeout``, 130 when a second signal forced the end, 1 when the worker broke.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(serve_async(worker))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415 - only where it is installed

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def serve_async(worker: Worker) -> int:
    """The same inside a loop that runs already; installs signal handlers for its duration."""
    stop = asyncio.Event()
    force = asyncio.Event()
    with _signals(stop, force):
        await worker.start()
        logger.info("worker %s runs; stop it with Ctrl-C", worker.worker_id)
        stopping = asyncio.create_task(stop.wait())
        broken = asyncio.create_task(worker.wait_stopped())
        await asyncio.wait({stopping, broken}, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            logger.error("worker %s cannot go on: %s", worker.worker_id, broken.result())
        else:
            logger.info("stopping: waiting for what runs; a second signal forces the end")
        failed = broken.done()
        for task in (stopping, broken):
            task.cancel()
        code = await _drain(worker, force)
        return EXIT_BROKEN if failed else code


async def _drain(worker: Worker, force: asyncio.Event) -> int:
    draining = asyncio.create_task(worker.stop())
    forced = asyncio.create_task(force.wait())
    await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
    forced.cancel()
    if draining.done():
        draining.result()
        return EXIT_CLEAN if worker.drained else EXIT_GAVE_UP
    logger.warning("forced to stop; what runs is cut off and comes again")
    await worker.cut()
    await asyncio.gather(draining, return_exceptions=True)
    return EXIT_FORCED


def _signals(stop: asyncio.Event, force: asyncio.Event) -> AbstractContextManager[None]:
    @contextmanager
    def installed() -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            (force if stop.is_set() else stop).set()

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    return installed()
