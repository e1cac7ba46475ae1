"""The time of an in-memory server: the real one, or one that a test moves."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

NS_PER_S = 1_000_000_000
MICROSECOND = timedelta(microseconds=1)


class Timer(Protocol):
    """Something that is to happen later."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the server measures time with."""

    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""
        ...

    def call_later(self, delay: timedelta, callback: Callable[[], None]) -> Timer: ...


class SystemClock:
    """Time as it really passes."""

    def time_ns(self) -> int:
        return time.time_ns()

    def call_later(self, delay: timedelta, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay.total_seconds(), callback)


class FakeTimer:
    """A timer of a clock that is moved by hand."""

    __slots__ = ("callback", "cancelled", "due_ns", "number")

    def __init__(self, due_ns: int, number: int, callback: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.number = number
        self.callback = callback
        self.cancelled = False

    def __lt__(self, other: FakeTimer) -> bool:
        return (self.due_ns, self.number) < (other.due_ns, other.number)

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """A clock that stands still until a test moves it.

    Delays of naks, leases, what expires in streams and buckets, and the time limits of running
    handlers follow it. What a handler does with asyncio or ``time`` itself, and what the worker
    takes for the age of a message, stay real.

    Example:
        ```python
        clock = FakeClock()
        server = MemoryServer(clock=clock)
        ...
        clock.advance(timedelta(minutes=5))  # a task that was given back for so long is there again
        ```

    Args:
        start: What it shows at first; the real time when not given.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now_ns = time.time_ns() if start is None else round(start.timestamp() * NS_PER_S)
        self._timers: list[FakeTimer] = []
        self._count = 0
        self._listeners: list[Callable[[timedelta], None]] = []

    def now(self) -> datetime:
        """What the clock shows."""
        return datetime.fromtimestamp(self._now_ns / NS_PER_S, UTC)

    def time_ns(self) -> int:
        """What the clock shows, in nanoseconds since the epoch."""
        return self._now_ns

    def advance(self, duration: timedelta) -> None:
        """Let time pass; whatever falls due happens on the way, in its order.

        Leases of running tasks are renewed on the way too. See ``Faults.jump`` for time that passes
        while the workers stand still.

        Raises:
            ValueError: Backwards.
        """
        if duration < timedelta(0):
            raise ValueError(f"a clock goes forward, got {duration!r}")
        end_ns = self._now_ns + duration // MICROSECOND * 1000
        while self._timers and self._timers[0].due_ns <= end_ns:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._show(timer.due_ns)
                timer.callback()
        self._show(end_ns)

    def call_later(self, delay: timedelta, callback: Callable[[], None]) -> Timer:
        """Call something when the clock has been moved by ``delay``."""
        self._count += 1
        due_ns = self._now_ns + delay // MICROSECOND * 1000
        timer = FakeTimer(due_ns, self._count, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def listen(self, callback: Callable[[timedelta], None]) -> Callable[[], None]:
        """Be told of each move, however small; returns what ends it."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def _show(self, now_ns: int) -> None:
        passed = timedelta(microseconds=(now_ns - self._now_ns) / 1000)
        self._now_ns = now_ns
        if passed:
            for listener in list(self._listeners):
                listener(passed)
