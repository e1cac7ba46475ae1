"""Dispatches parked tasks again: when their signal is there, or when their time is over.

Every worker with the plugin does it for every task, so that none waits for a worker that has died.
Who has parked a task looks first, and the others a moment later, at different times, when most of
what they would do is done. Two that look at the same time send the same message with the same id,
of which the queue takes one.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import random
import time
from dataclasses import dataclass

import nats.errors
from nats.js import JetStreamContext

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import Entry, KeyValue, WorkerFacade
from dagnats_worker_signals._parking import (
    HEADER_LATE,
    HEADER_SIGNAL,
    HEADER_UNTIL,
    HEADER_WORKER,
    Parking,
    Record,
    is_gone,
)
from dagnats_worker_signals._watch import SignalWatch, happens, keep_following

logger = logging.getLogger("dagnats_worker_signals")

AT_ONCE_MAX = 64
"""How many parked tasks one worker looks at at the same time."""

RECENT_SIGNALS_MAX = 10_000
OTHERS_FROM_S = 0.5
OTHERS_UNTIL_S = 1.5
"""When a worker looks at a task that another one has parked."""

CLOCKS_DIFFER_NS = 10_000_000_000
"""What was stored so shortly after we began to listen may be older than that."""

LOOK_AGAIN_FIRST_S = 0.1
LOOK_AGAIN_MAX_S = 30.0
TELL_EVERY_S = 30.0
BUSY = -math.inf
STALE_DUES_MAX = 1000


@dataclass(slots=True)
class Parked:
    """What a worker remembers of a parked task.

    Attributes:
        signal: The key that it waits for.
        until_s: When its time is over.
        is_own: This worker has parked it.
        due_s: When we look at it next; ``BUSY`` while we do.
        looks: How often its message was still in its queue.
    """

    signal: str
    until_s: float
    is_own: bool
    due_s: float
    looks: int = 0


class Waker:
    """The parked tasks of the fleet, in the memory of one worker."""

    def __init__(
        self,
        worker: WorkerFacade,
        js: JetStreamContext,
        parking: Parking,
        watch: SignalWatch,
        *,
        signals: KeyValue,
        tasks: KeyValue,
        sweep_every_s: float,
    ) -> None:
        self._worker_id = worker.worker_id
        self._js = js
        self._parking = parking
        self._watch = watch
        self._signals = signals
        self._tasks = tasks
        self._sweep_every_s = sweep_every_s
        self._parked: dict[str, Parked] = {}
        self._of_signal: dict[str, set[str]] = {}
        self._recent: dict[str, None] = {}
        self._dues: list[tuple[float, str]] = []
        self._told_s = -math.inf
        self._changed = asyncio.Event()
        self._free = asyncio.Semaphore(AT_ONCE_MAX)
        watch.tell(self.on_signal, self.look_at_all)

    # ------------------------------------------------------------------ what is parked

    async def follow(self) -> None:
        """Learn which tasks are parked, for as long as the worker runs."""
        await keep_following(
            "parked tasks", lambda: self._tasks.follow(">", values=False), self.take
        )

    def take(self, entry: Entry) -> None:
        """A task was parked, or is not parked any more."""
        known = self._parked.get(entry.key)
        if known is not None:
            self._forget(entry.key, known)
        if entry.deleted:
            return
        try:
            signal, until_s = entry.headers[HEADER_SIGNAL], float(entry.headers[HEADER_UNTIL])
        except (KeyError, ValueError):
            logger.warning("%r is no parked task, and left alone", entry.key)
            return
        is_own = entry.headers.get(HEADER_WORKER) == self._worker_id
        parked = Parked(signal, until_s, is_own, until_s)
        self._parked[entry.key] = parked
        self._of_signal.setdefault(signal, set()).add(entry.key)
        self._parking.parked = len(self._parked)
        heard_since_ns = self._watch.opened_ns + CLOCKS_DIFFER_NS
        if signal in self._recent or entry.timestamp_ns < heard_since_ns:
            until_s = min(until_s, self._soon(parked))
        self._set_due(entry.key, parked, until_s)

    def _forget(self, key: str, parked: Parked) -> None:
        if self._parked.get(key) is not parked:
            return
        del self._parked[key]
        others = self._of_signal[parked.signal]
        others.remove(key)
        if not others:
            del self._of_signal[parked.signal]
        self._parking.parked = len(self._parked)

    # ------------------------------------------------------------------ when to look

    def on_signal(self, signal: str) -> None:
        """A signal was sent."""
        self._recent.pop(signal, None)
        self._recent[signal] = None
        if len(self._recent) > RECENT_SIGNALS_MAX:
            del self._recent[next(iter(self._recent))]
        for key in self._of_signal.get(signal, ()):
            self._look_soon(key, self._parked[key])

    def look_at_all(self) -> None:
        """Signals may have been missed."""
        for key, parked in self._parked.items():
            self._look_soon(key, parked)

    async def sweep(self) -> None:
        """Look at everything now and then, whatever we were told."""
        while True:
            await asyncio.sleep(self._sweep_every_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            self.look_at_all()

    def _look_soon(self, key: str, parked: Parked) -> None:
        soon_s = self._soon(parked)
        self._set_due(key, parked, soon_s if parked.due_s == BUSY else min(soon_s, parked.due_s))

    def _soon(self, parked: Parked) -> float:
        wait_s = 0.0 if parked.is_own else random.uniform(OTHERS_FROM_S, OTHERS_UNTIL_S)  # noqa: S311 - no secret
        return time.time() + wait_s

    def _set_due(self, key: str, parked: Parked, due_s: float) -> None:
        parked.due_s = due_s
        heapq.heappush(self._dues, (due_s, key))
        if len(self._dues) > 2 * len(self._parked) + STALE_DUES_MAX:
            waiting = ((one.due_s, key) for key, one in self._parked.items())
            self._dues = [due for due in waiting if due[0] != BUSY]
            heapq.heapify(self._dues)
        self._changed.set()

    # ------------------------------------------------------------------ looking

    async def run(self) -> None:
        """Look at each task when it is due, for as long as the worker runs."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                wait_s = self._dues[0][0] - time.time() if self._dues else math.inf
                if wait_s > 0:
                    await happens(self._changed, min(wait_s, LOOK_AGAIN_MAX_S))
                    continue
                due_s, key = heapq.heappop(self._dues)
                parked = self._parked.get(key)
                if parked is None or parked.due_s != due_s:
                    continue  # it is gone, or was put off
                await self._free.acquire()
                parked.due_s = BUSY
                group.create_task(self._look_at(key, parked))

    async def _look_at(self, key: str, parked: Parked) -> None:
        try:
            next_s = await self._wake(key, parked)
        except (KeyValueError, nats.errors.Error) as error:
            self._tell(f"the parked task {key} is looked at again later: {error}")
            next_s = self._later(parked)
        except ValueError as error:
            logger.warning("left alone: %s", error)
            next_s = None
        finally:
            self._free.release()
        if next_s is None:
            self._forget(key, parked)
        elif self._parked.get(key) is parked and parked.due_s == BUSY:
            self._set_due(key, parked, next_s)

    async def _wake(self, key: str, parked: Parked) -> float | None:
        """Dispatch a task where it is time; returns when to look at it again, None for never."""
        is_late = time.time() >= parked.until_s
        has_signal = await self._signals.get(parked.signal) is not None
        if not has_signal and not is_late:
            return parked.until_s
        entry = await self._tasks.get(key)
        if entry is None:
            return None
        record = Record.decode(entry)
        if record.signal != parked.signal:
            return self._later(parked)  # it was parked anew, and we will hear of that
        if not await is_gone(self._js, record.stream, record.sequence):
            return self._later(parked)  # its ack is on the way, or the task is not ours but its
        await self._dispatch(record, is_late=not has_signal)
        await self._parking.discard(record)
        return None

    async def _dispatch(self, record: Record, *, is_late: bool) -> None:
        headers = dict(record.headers)
        if is_late:
            name = record.signal.partition(".")[2]
            headers[HEADER_LATE] = " ".join(sorted({*headers.get(HEADER_LATE, "").split(), name}))
        stored = await self._js.publish(record.subject, record.data, headers=headers)
        if not stored.duplicate:
            why = "its time is over" if is_late else "its signal is there"
            logger.info("the parked task %s goes on: %s", record.entry, why)

    def _tell(self, text: str) -> None:
        """Warn, but not of each of the thousands of tasks when the server is away."""
        now_s = time.monotonic()
        level = logging.WARNING if now_s - self._told_s > TELL_EVERY_S else logging.DEBUG
        if level == logging.WARNING:
            self._told_s = now_s
        logger.log(level, text)

    def _later(self, parked: Parked) -> float:
        wait_s: float = min(LOOK_AGAIN_FIRST_S * 2**parked.looks, LOOK_AGAIN_MAX_S)
        parked.looks = min(parked.looks + 1, 30)
        return time.time() + wait_s * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
