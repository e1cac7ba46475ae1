"""``run --processes N``: several processes, started again when they crash, and ended together."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from dagnats_worker._config import WorkerConfig
from dagnats_worker._durations import format_duration
from dagnats_worker._http import AddressError
from dagnats_worker._serve import EXIT_BROKEN, EXIT_CLEAN, EXIT_FORCED, EXIT_GAVE_UP, STOP_SIGNALS
from dagnats_worker.cli._children import Child, described_end
from dagnats_worker.cli._merged_health import MergedHealth
from dagnats_worker.cli._screen import counted
from dagnats_worker.cli._values import format_size
from dagnats_worker.errors import describe

logger = logging.getLogger("dagnats_worker.supervisor")

EXIT_USAGE = 2
LOOK_EVERY_S = 0.25
READY_WAIT_MAX_S = 60.0
JITTER = 0.5
"""A pause is between half of its time and all of it, so that processes do not come back as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command line wants.

    Attributes:
        url: Of the server that this process has started.
        health: Where health is served; None for what the processes have read.
        max_tasks: A process that has run so many is replaced.
        max_memory_bytes: So is one that has more than this.
    """

    processes: int
    url: str | None = None
    health: str | None = None
    max_tasks: int | None = None
    max_memory_bytes: int | None = None


class Stop:
    """The signals of a supervisor: the first drains, the second forces, the third kills."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.times = 0
        self.children: set[Child] = set()

    def on_signal(self) -> None:
        self.times += 1
        if self.times == 1:
            self.asked.set()
            return
        for child in self.children:
            if self.times == 2:  # noqa: PLR2004 - see the class
                child.force()
            else:
                child.kill()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.on_signal)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    async def ended(self, child: Child) -> int:
        """Wait for the end of a process, which is asked to end when we are; its exit code."""
        asked = asyncio.create_task(self.asked.wait())
        ended = asyncio.create_task(child.ended())
        await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not ended.done():
            await child.end(child.config.drain_timeout)
        return await ended

    async def within(self, limit_s: float) -> bool:
        """Whether it is asked for by then."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.asked.wait()
        except TimeoutError:
            return False


class Supervisor:
    """Keeps so many processes running until it is told to stop, or until they cannot run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stop = Stop()
        self._children: dict[int, Child] = {}
        self._crashes: Counter[int] = Counter()
        self._config = WorkerConfig()
        self._others_may_start = asyncio.Event()
        self._started = asyncio.Event()
        self._codes: list[int] = []
        self._health = MergedHealth(
            lambda: [self._children[number] for number in sorted(self._children)],
            self._stop.asked.is_set,
        )

    async def run(self) -> int:
        """Run, and return the exit code.

        Raises:
            AddressError: The port for health is taken.
        """
        numbers = range(self._plan.processes)
        with self._stop.on_signals():
            async with self._health:
                await self._health.open(self._plan.health)
                keepers = [asyncio.create_task(self._never_fails(self._keep(n))) for n in numbers]
                recycling = asyncio.create_task(self._never_fails(self._recycle()))
                await self._stop.asked.wait()
                if self._children:
                    left = counted(len(self._children), "process", "processes")
                    logger.info("stopping %s", left)
                recycling.cancel()
                await asyncio.gather(*keepers)
        return self._exit_code()

    async def _never_fails(self, work: Coroutine[Any, Any, None]) -> None:
        """A supervisor that cannot do its work says so, and ends, instead of doing half of it."""
        try:
            await work
        except Exception as error:  # such as no memory for another process
            logger.exception("supervising the processes")
            self._give_up(EXIT_BROKEN, f"the processes cannot be supervised: {describe(error)}")

    # ------------------------------------------------------------------ one place

    async def _keep(self, number: int) -> None:
        """Have a process in this place, always."""
        if number:
            await self._first_is_ready()
        while not self._stop.asked.is_set():
            child = await self._start(number)
            began = monotonic()
            watching = asyncio.create_task(self._watch_start(child))
            code = await self._stop.ended(child)
            await watching
            self._gone(child)
            if self._stop.asked.is_set():
                self._codes.append(code)
            elif not child.leaving:
                await self._crashed(child, code, monotonic() - began)

    async def _first_is_ready(self) -> None:
        """What is wrong with all of them is then said by one."""
        stopped = asyncio.create_task(self._stop.asked.wait())
        ready = asyncio.create_task(self._others_may_start.wait())
        await asyncio.wait({stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        ready.cancel()

    async def _start(self, number: int) -> Child:
        shows = number == 0 and not self._others_may_start.is_set()
        child = await Child.start(number, self._plan.processes, url=self._plan.url, shows=shows)
        self._children[number] = child
        self._stop.children.add(child)
        self._started.set()
        logger.info("process %d has the pid %d", number, child.pid)
        return child

    def _gone(self, child: Child) -> None:
        self._stop.children.discard(child)
        if self._children.get(child.number) is child:
            del self._children[child.number]

    async def _watch_start(self, child: Child) -> None:
        if await child.reaches(child.introduced):
            self._config = child.config
            try:
                await self._health.open(self._plan.health or child.config.health)
            except AddressError as error:
                self._give_up(EXIT_USAGE, str(error))
        if await child.reaches(child.ready):
            self._others_may_start.set()

    # ------------------------------------------------------------------ crashes

    async def _crashed(self, child: Child, code: int, lived_s: float) -> None:
        """Wait before the next start, longer each time in a row, or give up."""
        end, config = described_end(code), self._config
        if not self._others_may_start.is_set() and code in (EXIT_BROKEN, EXIT_USAGE):
            self._give_up(code, f"{child} {end} before it took any tasks; not starting the others")
            return
        if lived_s > config.crash_window.total_seconds():
            self._crashes[child.number] = 0
        self._crashes[child.number] += 1
        times = self._crashes[child.number]
        if times >= config.crashes_max:
            window = format_duration(config.crash_window)
            self._give_up(
                EXIT_BROKEN,
                f"{child} {end}, and has now ended {times} times in a row within {window} of its "
                "start; giving up. What it has logged says why",
            )
            return
        wait_s = config.restart_wait.total_seconds() * 2 ** (times - 1)
        wait_s = min(wait_s, config.restart_wait_max.total_seconds())
        wait_s *= 1 - JITTER * random.random()  # noqa: S311 - no secret
        logger.error("%s %s; the next one starts in %.1f s", child, end, wait_s)
        await self._stop.within(wait_s)

    def _give_up(self, code: int, reason: str) -> None:
        logger.critical("%s", reason)
        self._codes.append(code)
        self._stop.asked.set()

    # ------------------------------------------------------------------ replacing

    async def _recycle(self) -> None:
        """Replace what has done its part, one at a time, so that the others keep working."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for child in list(self._children.values()):
                if child.ready.is_set() and (reason := self._is_due(child)):
                    await self._replace(child, reason)

    def _is_due(self, child: Child) -> str:
        plan = self._plan
        if plan.max_tasks is not None and child.tasks_ended >= plan.max_tasks:
            return f"has run {child.tasks_ended} tasks"
        if plan.max_memory_bytes is not None and child.memory_bytes >= plan.max_memory_bytes:
            return f"has {format_size(child.memory_bytes)} of memory"
        return ""

    async def _replace(self, child: Child, reason: str) -> None:
        logger.info("%s %s, and is replaced", child, reason)
        child.leaving = True
        await child.end(child.config.recycle_timeout)
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT_MAX_S):
                while (new := self._children.get(child.number)) is None or new is child:
                    self._started.clear()
                    await self._started.wait()
                await new.reaches(new.ready)

    # ------------------------------------------------------------------ the end

    def _exit_code(self) -> int:
        """Of the worst that has happened to any of them."""
        codes = set(self._codes)
        if self._stop.times > 1 and codes - {EXIT_CLEAN}:
            return EXIT_FORCED
        for code in (EXIT_USAGE, EXIT_BROKEN):
            if code in codes:
                return code
        unasked = {EXIT_CLEAN, -signal.SIGTERM, -signal.SIGINT}
        return EXIT_GAVE_UP if codes - unasked else EXIT_CLEAN
