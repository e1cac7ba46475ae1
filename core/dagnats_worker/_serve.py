"""Running a worker as a process: its loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dagnats_worker._durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dagnats_worker._worker import Worker

logger = logging.getLogger("dagnats_worker.worker")

EXIT_CLEAN = 0
EXIT_BROKEN = 1
EXIT_GAVE_UP = 3
EXIT_FORCED = 130

FORCED_WITHIN_S = 6.0
"""A forced end that takes longer than this is made by ending the process."""

CLOSED_WITHIN_S = 2.0
"""So is the end of a loop on which a handler ignores that it is cancelled."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """That a worker is to stop: from a signal, or from whoever supervises its process.

    It may be made before the worker runs, and by any thread; what is asked for is not lost.

    Attributes:
        within: How long the handlers may go on; None for the configured ``drain_timeout``.
    """

    def __init__(self) -> None:
        self.within: timedelta | None = None
        self._asked = False
        self._forced = False
        self._listener: Callable[[], None] | None = None
        self._end: threading.Timer | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody has asked already."""
        return self._asked

    def ask(self, within: timedelta | None = None) -> None:
        """Drain, and end; the first one who says how long is heard."""
        if not self._asked:
            self._asked, self.within = True, within
            self._tell()

    def force(self) -> None:
        """Cut off what still runs; the process ends soon, whatever its handlers do."""
        self._asked = True
        if not self._forced:
            self._forced = True
            if self._listener is not None:
                self._end = _end_process(FORCED_WITHIN_S, EXIT_FORCED)
            self._tell()

    @contextmanager
    def heard_by(self, stop: asyncio.Event, force: asyncio.Event) -> Iterator[None]:
        """Set these events of the running loop; afterwards nothing is heard any more."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if self._asked:
                stop.set()
            if self._forced:
                force.set()

        def listener() -> None:
            loop.call_soon_threadsafe(look)

        self._listener = listener
        look()
        try:
            yield
        finally:
            self._listener = None
            if self._end is not None:
                self._end.cancel()

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener()


def serve(worker: Worker, request: StopRequest | None = None) -> int:
    """Run a worker until a signal, and return the exit code.

    Args:
        request: Another way to stop it.

    Returns:
        0 when every handler has ended by itself, 3 when some had to be cut off after
        ``drain_timeout``, 130 when a second signal forced the end, 1 when the worker broke.
    """
    request = request or StopRequest()
    with _signals(request), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_serve(worker, request))
        closed = _end_process(CLOSED_WITHIN_S, code)
        runner.close()
        closed.cancel()
    return code


async def serve_async(worker: Worker) -> int:
    """The same inside a loop that runs already; installs signal handlers for its duration."""
    request = StopRequest()
    with _signals(request):
        return await _serve(worker, request)


async def _serve(worker: Worker, request: StopRequest) -> int:
    if request.asked:
        return EXIT_CLEAN
    stop = asyncio.Event()
    force = asyncio.Event()
    with request.heard_by(stop, force):
        await worker.start()
        logger.info("worker %s runs; stop it with Ctrl-C", worker.worker_id)
        stopping = asyncio.create_task(stop.wait())
        broken = asyncio.create_task(worker.wait_stopped())
        await asyncio.wait({stopping, broken}, return_when=asyncio.FIRST_COMPLETED)
        within = request.within or worker.config.drain_timeout
        if broken.done():
            logger.error("worker %s cannot go on: %s", worker.worker_id, broken.result())
        else:
            logger.info("stopping%s", _waits_for(worker, within))
        failed = broken.done()
        for task in (stopping, broken):
            task.cancel()
        code = await _drain(worker, within, force)
        return EXIT_BROKEN if failed else code


@contextmanager
def _signals(request: StopRequest) -> Iterator[None]:
    """Handled by the interpreter and not by the loop, which a handler may block.

    One that comes while the loop is closed, and the exit code is known, changes nothing any more.
    Only the second signal forces, and not the first one after a supervisor has asked: who ends a
    service often signals all of its processes at once.
    """
    signals = 0

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            request.force()
        else:
            request.ask()

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_process(after_s: float, code: int) -> threading.Timer:
    """End the process from a thread, because nothing else can when a handler never lets go."""

    def end() -> None:
        logger.error(
            "a handler ignores that it is cancelled, or blocks the loop; ending the process"
        )
        logging.shutdown()
        os._exit(code)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()
    return timer


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415 - only where it is installed

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _waits_for(worker: Worker, timeout: timedelta) -> str:
    running = Counter(worker.handling)
    if not running:
        return ""
    tasks = ", ".join(f"{count} {task_type}" for task_type, count in running.most_common())
    within = format_duration(timeout)
    return f": waiting up to {within} for {tasks}; a second signal forces the end"


async def _drain(worker: Worker, within: timedelta, force: asyncio.Event) -> int:
    draining = asyncio.create_task(worker.stop(within))
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
