"""One look at the bucket of signals for everybody in this worker who waits for one.

What is told is only which keys were written; whoever is concerned reads the value. So a wait costs
no consumer, and a large signal goes to those who want it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import Entry, KeyValue

logger = logging.getLogger("dagnats_worker_signals")

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event, but not for longer."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


Changes = AbstractAsyncContextManager[AsyncIterator[Entry]]


async def keep_following(
    what: str,
    follow: Callable[[], Changes],
    take: Callable[[Entry], None],
    *,
    opened: Callable[[], None] = lambda: None,
    closed: Callable[[], None] = lambda: None,
    wanted: asyncio.Event | None = None,
) -> None:
    """Follow a bucket for as long as the worker runs, also where it is made later.

    Args:
        opened: Called when no change is missed any more.
        closed: Called when changes are missed again.
        wanted: Where it is set, the next try is made at once.
    """
    wanted = wanted or asyncio.Event()
    wait_s, level = RETRY_FIRST_S, logging.WARNING
    while True:
        try:
            async with follow() as changes:
                wait_s, level = RETRY_FIRST_S, logging.WARNING
                opened()
                async for entry in changes:
                    take(entry)
        except KeyValueError as error:
            logger.log(level, "%s are not followed, and tried again: %s", what, error)
            level = logging.DEBUG  # once is enough, until it has worked again
        finally:
            closed()
        wanted.clear()
        await happens(wanted, wait_s)
        wait_s = min(wait_s * 2, RETRY_MAX_S)


class SignalWatch:
    """Tells waits that their signal was written.

    Attributes:
        opened_ns: Since when no signal has been missed, in nanoseconds since the epoch; 0 while
            signals are missed.
    """

    def __init__(self, signals: KeyValue) -> None:
        self.opened_ns = 0
        self._signals = signals
        self._waits: dict[str, set[asyncio.Event]] = {}
        self._on_signal: Callable[[str], None] = lambda _key: None
        self._on_open: Callable[[], None] = lambda: None
        self._wanted = asyncio.Event()

    def tell(self, on_signal: Callable[[str], None], on_open: Callable[[], None]) -> None:
        """Call the one for each signal, and the other after a time in which some were missed."""
        self._on_signal, self._on_open = on_signal, on_open

    @contextmanager
    def listening(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever it is time to look at this key."""
        news = asyncio.Event()
        self._waits.setdefault(key, set()).add(news)
        self._wanted.set()
        try:
            yield news
        finally:
            others = self._waits[key]
            others.remove(news)
            if not others:
                del self._waits[key]

    async def run(self) -> None:
        """Follow the bucket, for as long as the worker runs."""
        await keep_following(
            "signals",
            lambda: self._signals.follow(">", existing=False, values=False),
            self._take,
            opened=self._open,
            closed=self._close,
            wanted=self._wanted,
        )

    def _open(self) -> None:
        self.opened_ns = time.time_ns()
        for waits in self._waits.values():
            for news in waits:
                news.set()
        self._on_open()

    def _close(self) -> None:
        self.opened_ns = 0

    def _take(self, entry: Entry) -> None:
        if entry.deleted:
            return
        for news in self._waits.get(entry.key, ()):
            news.set()
        self._on_signal(entry.key)
