"""The worker's clock: time limits, cancellation of long handlers, and whether the loop keeps up."""

from __future__ import annotations

import asyncio
import logging
import time

from dagnats_worker import _json
from dagnats_worker._cancellation import Cancellations
from dagnats_worker._config import WorkerConfig
from dagnats_worker._counters import Counters
from dagnats_worker._ending import RUNS_STREAM
from dagnats_worker._inflight import Ending, Held, InFlight
from dagnats_worker._transport import Transport
from dagnats_worker._watchdog import Watchdog
from dagnats_worker.errors import KeyValueError, TransportError

logger = logging.getLogger("dagnats_worker.worker")

TICK_MAX_S = 0.1
TICK_MIN_S = 0.01
TICKS_PER_TIMEOUT = 10
LAG_WINDOW_S = 30.0


class Supervisor:
    """Looks at everything that runs, ten times a second, so that no task needs a timer."""

    def __init__(
        self,
        transport: Transport,
        held: Held,
        cancellations: Cancellations,
        config: WorkerConfig,
        counters: Counters,
        *,
        watchdog: Watchdog,
        worker_id: str,
        shortest_timeout_s: float,
    ) -> None:
        self._transport = transport
        self._held = held
        self._cancellations = cancellations
        self._config = config
        self._counters = counters
        self._watchdog = watchdog
        self._worker_id = worker_id
        self._tick_s = min(TICK_MAX_S, max(TICK_MIN_S, shortest_timeout_s / TICKS_PER_TIMEOUT))
        self._watch_after_s = config.cancel_watch_after.total_seconds()
        self._skips_told = 0
        self._lag_s = 0.0
        self._lag_before_s = 0.0
        self._lag_since = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._tick(), name="dagnats-worker clock"),
            asyncio.create_task(self._look_around(), name="dagnats-worker look-out"),
        ]

    def worst_lag_s(self) -> float:
        """How late the loop was at worst in the last half minute, or somewhat longer.

        Asking changes nothing, so that several may ask.
        """
        return max(self._lag_s, self._lag_before_s)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tick(self) -> None:
        leases = self._transport.leases
        while True:
            before = time.monotonic()
            await asyncio.sleep(self._tick_s)
            now = time.monotonic()
            self._note_lag(now, now - before - self._tick_s)
            leases.loop_is_alive()
            self._watchdog.loop_is_alive()
            for inflight in self._held:
                if not inflight.in_handler:
                    continue
                ran_s = now - inflight.started_at
                if ran_s > inflight.timeout_s:
                    inflight.interrupt(Ending.TIMEOUT)
                elif ran_s > self._watch_after_s and not inflight.watched:
                    await self._watch(inflight)

    def _note_lag(self, now: float, lag_s: float) -> None:
        if now - self._lag_since > LAG_WINDOW_S:
            self._lag_before_s, self._lag_s, self._lag_since = self._lag_s, 0.0, now
        self._lag_s = max(self._lag_s, lag_s)

    async def _watch(self, inflight: InFlight) -> None:
        try:
            await self._cancellations.watch(inflight)
        except TransportError as error:
            inflight.watched = False
            logger.debug("cannot watch %s yet: %s", inflight.delivery, error)

    async def _look_around(self) -> None:
        """What needs the server: cancels by the engine itself, and whether there is one."""
        every_s = self._config.cancel_poll_every.total_seconds()
        check_every_s = self._config.consumer_check_every.total_seconds()
        checked_at = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._cancellations.poll()
                await self._tell_skips()
                if time.monotonic() - checked_at > check_every_s:
                    checked_at = time.monotonic()
                    self._cancellations.with_engine = await self._transport.has_stream(RUNS_STREAM)
            except TransportError as error:
                logger.debug("looking around: %s", error)

    async def _tell_skips(self) -> None:
        """The engine's console shows how many tasks of cancelled runs a worker has skipped."""
        skips = self._counters.skipped_cancelled
        if skips == self._skips_told or not self._cancellations.with_engine:
            return
        status = {"worker_id": self._worker_id, "cancelled_tasks_skipped": skips}
        self._skips_told = skips
        try:
            bucket = self._transport.key_value("worker_status")
            await bucket.put(self._worker_id, _json.encode(status))
        except KeyValueError as error:
            logger.debug("worker_status: %s", error)
