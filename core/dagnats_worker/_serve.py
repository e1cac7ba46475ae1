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


def serve(worker: Worker) -> int:
    """Run a worker until a signal, and return the exit code.

    Returns:
        0 when every handler has ended by itself, 3 when some had to be cut off after
        ``drain_timeout``, 130 when a second signal forced the end, 1 when the worker broke.
    """
    with _ignored_signals(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(serve_async(worker))
        closed = _end_process(CLOSED_WITHIN_S, code)
        runner.close()
        closed.cancel()
    return code


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """Outside ``serve_async``, which handles them: one that comes while the loop is closed, and the
    exit code is known, changes nothing any more."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
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
            logger.info("stopping%s", _waits_for(worker))
        failed = broken.done()
        for task in (stopping, broken):
            task.cancel()
        code = await _drain(worker, force)
        return EXIT_BROKEN if failed else code


def _waits_for(worker: Worker) -> str:
    running = Counter(worker.handling)
    if not running:
        return ""
    tasks = ", ".join(f"{count} {task_type}" for task_type, count in running.most_common())
    within = format_duration(worker.config.drain_timeout)
    return f": waiting up to {within} for {tasks}; a second signal forces the end"


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


@contextmanager
def _signals(stop: asyncio.Event, force: asyncio.Event) -> Iterator[None]:
    """Handled by the interpreter and not by the loop, which a handler may block."""
    loop = asyncio.get_running_loop()
    signals = 0
    forced: list[threading.Timer] = []

    def wake() -> None:
        (force if stop.is_set() else stop).set()

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals == 2:  # noqa: PLR2004 - the second one forces
            forced.append(_end_process(FORCED_WITHIN_S, EXIT_FORCED))
        loop.call_soon_threadsafe(wake)

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in forced:
            timer.cancel()
