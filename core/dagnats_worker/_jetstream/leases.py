"""Renewal of leases, from a thread with a connection of its own.

A handler that blocks the event loop then does not lose its lease: an acknowledgement subject takes
``+WPI`` from any connection. Where a second connection cannot be opened, the loop renews.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient

from dagnats_worker._config import WorkerConfig
from dagnats_worker._inflight import Ending, InFlight
from dagnats_worker._jetstream.connection import Connection
from dagnats_worker._protocol import IN_PROGRESS
from dagnats_worker.errors import describe
from dagnats_worker.hookspecs import KeepAlive

logger = logging.getLogger("dagnats_worker.leases")

TICK_MAX_S = 1.0
TICK_MIN_S = 0.01
TICKS_PER_RENEWAL = 4
THREAD_START_MAX_S = 10.0
THREAD_END_MAX_S = 5.0

Open = Callable[[], Awaitable[Connection]]


class KeptAlive:
    """A request that a plugin wants to be sent again and again."""

    __slots__ = ("due_at", "every_s", "is_asking", "request")

    def __init__(self, request: KeepAlive, every_s: float) -> None:
        self.request = request
        self.every_s = every_s
        self.due_at = 0.0
        self.is_asking = False


class Leases:
    """The leases that are to be kept, and how to renew those that are due."""

    def __init__(self, config: WorkerConfig) -> None:
        self._held: dict[int, InFlight] = {}
        self._blocked_max_s = config.loop_blocked_max.total_seconds()
        self._loop = asyncio.get_running_loop()
        self._loop_seen_at = time.monotonic()
        self._tick_s = TICK_MAX_S
        self._woken: asyncio.Event | None = None
        self._keeper: asyncio.AbstractEventLoop | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._kept_alive: dict[int, KeptAlive] = {}
        self.renewals = 0

    def hold(self, inflight: InFlight) -> None:
        self._held[id(inflight)] = inflight
        if self._quicken(inflight.renew_every_s):
            self.wake()

    def _quicken(self, every_s: float) -> bool:
        """Look at the table often enough for this lease; True when that is oftener than before."""
        if every_s >= self._tick_s * TICKS_PER_RENEWAL or self._tick_s == TICK_MIN_S:
            return False
        self._tick_s = max(TICK_MIN_S, every_s / TICKS_PER_RENEWAL)
        return True

    def wake(self) -> None:
        """End the present pause of the renewal, whichever thread that is in."""
        if self._keeper is not None and self._woken is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._keeper.call_soon_threadsafe(self._woken.set)

    def release(self, inflight: InFlight) -> None:
        self._held.pop(id(inflight), None)

    def loop_is_alive(self) -> None:
        """Called by the event loop, again and again."""
        self._loop_seen_at = time.monotonic()

    def keep_alive(self, request: KeepAlive, every_s: float) -> Callable[[], None]:
        """Send a request now and then again and again; returns what ends it."""
        kept = KeptAlive(request, every_s)
        self._kept_alive[id(kept)] = kept
        self._quicken(every_s)
        self.wake()
        return lambda: self._end(kept)

    def _end(self, kept: KeptAlive) -> None:
        self._kept_alive.pop(id(kept), None)

    async def renew_due(self, client: NatsClient) -> None:
        """Renew every lease that has used a third of its time."""
        now = time.monotonic()
        if now - self._loop_seen_at > self._blocked_max_s:
            return
        for kept in list(self._kept_alive.values()):
            if kept.due_at <= now and not kept.is_asking:
                kept.due_at = now + kept.every_s
                self._begin(self._ask_alive(client, kept))
        self._give_up_unconfirmed(now)
        if not client.is_connected:
            return
        for inflight in list(self._held.values()):
            every_s = inflight.renew_every_s
            self._quicken(every_s)
            if inflight.renewed_at + every_s > now or now > inflight.renew_until:
                continue
            inflight.renewed_at = now
            self.renewals += 1
            if inflight.source.confirm_leases:
                self._begin(self._ask(client, inflight))
            else:
                await client.publish(inflight.ack_subject, IN_PROGRESS)

    def _give_up_unconfirmed(self, now: float) -> None:
        """Whoever is cut off from the server may have been replaced, and cannot ask."""
        for inflight in list(self._held.values()):
            lease_s = inflight.source.ack_wait.total_seconds()
            if inflight.source.confirm_leases and now - inflight.confirmed_at > lease_s:
                self._lose(inflight)

    def _lose(self, inflight: InFlight) -> None:
        if inflight.ending is None and id(inflight) in self._held:
            logger.warning("%s: its lease was not confirmed; giving it up", inflight.delivery)
            self._loop.call_soon_threadsafe(inflight.interrupt, Ending.LEASE_LOST)

    def _begin(self, asking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(asking, name="dagnats-worker lease request")
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _ask_alive(self, client: NatsClient, kept: KeptAlive) -> None:
        request, kept.is_asking = kept.request, True
        try:
            if not client.is_connected:
                raise ConnectionError("the connection to NATS is lost")
            answer = await client.request(
                request.subject, request.body(), timeout=kept.every_s, headers=dict(request.headers)
            )
        except (nats.errors.Error, TimeoutError, OSError) as error:
            self._tell(request.failed, f"{request.subject}: {describe(error)}")
        except Exception as error:  # noqa: BLE001 - out of the plugin's body(), and told to it
            self._tell(request.failed, f"{request.subject}: no body, {error!r}")
        else:
            self._tell(request.answered, answer.data)
        finally:
            kept.is_asking = False

    def _tell(self, callback: Callable[[Any], None] | None, what: Any) -> None:
        if callback is not None:
            with contextlib.suppress(RuntimeError):  # the worker's loop is closed
                self._loop.call_soon_threadsafe(callback, what)

    async def _ask(self, client: NatsClient, inflight: InFlight) -> None:
        """Without an answer within the lease, somebody else may hold the message."""
        asked, asked_at = inflight.ack_subject, time.monotonic()
        try:
            lease_s = inflight.source.ack_wait.total_seconds()
            await client.request(asked, IN_PROGRESS, timeout=lease_s)
        except (nats.errors.Error, TimeoutError):
            # Where the message has been delivered to us again meanwhile, that lease counts.
            if inflight.ack_subject == asked:
                self._lose(inflight)
        else:
            inflight.confirmed_at = max(inflight.confirmed_at, asked_at)

    async def keep(self, client: NatsClient, stopped: Callable[[], bool]) -> None:
        """Renew until told to stop; an error of one round does not end the renewal."""
        woken = self._woken = asyncio.Event()
        self._keeper = asyncio.get_running_loop()
        while not stopped():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick_s):
                    await woken.wait()
            woken.clear()
            try:
                await self.renew_due(client)
            except (nats.errors.Error, OSError, RuntimeError) as error:
                # RuntimeError: the table of leases changed while it was copied.
                logger.debug("renewing leases: %r", error)

    async def close(self) -> None:
        """Stop renewing."""


class LoopLeases(Leases):
    """Renews on the worker's own loop, for a connection that cannot be opened a second time."""

    def __init__(self, config: WorkerConfig, client: NatsClient) -> None:
        super().__init__(config)
        self._task = asyncio.create_task(self.keep(client, lambda: False), name="leases")

    async def close(self) -> None:
        tasks = [self._task, *self._requests]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ThreadLeases(Leases):
    """Renews from a thread with a loop and a connection of its own."""

    def __init__(self, config: WorkerConfig, open_connection: Open) -> None:
        super().__init__(config)
        self._open_connection = open_connection
        self._stopped = threading.Event()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="dagnats-worker-leases", daemon=True)

    async def start(self) -> None:
        """Open the second connection; raises what opening it raised."""
        self._thread.start()
        async with asyncio.timeout(THREAD_START_MAX_S):
            await self._opened

    def _is_opened(self, error: Exception | None) -> None:
        if self._opened.done():
            return  # nobody waits any more
        if error is None:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(error)

    def _run(self) -> None:
        asyncio.run(self._renew())

    async def _renew(self) -> None:
        try:
            connection = await self._open_connection()
        except Exception as error:  # noqa: BLE001 - whatever it is, `start` raises it
            self._tell(self._is_opened, error)
            return
        self._tell(self._is_opened, None)
        try:
            await self.keep(connection.client, self._stopped.is_set)
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await connection.close()

    async def close(self) -> None:
        self._stopped.set()
        self.wake()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, THREAD_END_MAX_S)
