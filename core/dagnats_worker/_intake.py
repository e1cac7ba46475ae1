"""From a source to the dispatcher: every delivery is held, given a slot, walked and let go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from dagnats_worker._ack import AT_ONCE, Nak, settle
from dagnats_worker._cancellation import Cancellations
from dagnats_worker._config import WorkerConfig
from dagnats_worker._counters import Counters
from dagnats_worker._current import current
from dagnats_worker._dispatcher import Dispatcher
from dagnats_worker._inflight import Ending, Held, InFlight
from dagnats_worker._protocol import IN_PROGRESS
from dagnats_worker._slots import Slots
from dagnats_worker._transport import Delivery, Source, Transport

logger = logging.getLogger("dagnats_worker.worker")


class Intake:
    """The deliveries of one source."""

    def __init__(
        self,
        source: Source,
        slots: Slots,
        dispatcher: Dispatcher,
        *,
        transport: Transport,
        held: Held,
        cancellations: Cancellations,
        counters: Counters,
        config: WorkerConfig,
        timeout_s: float,
        renew: bool,
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._source = source
        self._slots = slots
        self._dispatcher = dispatcher
        self._transport = transport
        self._held = held
        self._cancellations = cancellations
        self._counters = counters
        self._waiting_max_s = config.waiting_max.total_seconds()
        self._timeout_s = timeout_s
        self._renew = renew
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._threads: set[Future[Any]] = set()
        self._reader = self._loop.create_task(self._read(), name="dagnats-worker intake")

    async def _read(self) -> None:
        try:
            async for delivery in self._source.deliveries(self._slots):
                await self._take(delivery)
        except Exception as error:  # noqa: BLE001 - a source that breaks stops the worker, loudly
            self._on_bug(error)

    async def _take(self, delivery: Delivery) -> None:
        self._counters.delivered += 1
        inflight = InFlight(delivery, self._source, self._timeout_s)
        twin = self._held.add(inflight)
        if twin is not None:
            logger.warning("%s is being run here already; its lease is renewed", delivery)
            await self._transport.send(delivery.ack_subject, IN_PROGRESS)
            self._source.settled(delivery)
            self._slots.settled()
            return
        if self._renew:
            self._transport.leases.hold(inflight)
        task = self._loop.create_task(self._work(inflight))
        inflight.task = task
        self._tasks.add(task)

    async def _work(self, inflight: InFlight) -> None:
        entered = False
        try:
            entered = await self._enter(inflight)
            if entered:
                await self._dispatcher.dispatch(inflight)
            else:
                await settle(self._transport, inflight, Nak(AT_ONCE))
        except Exception as error:  # noqa: BLE001 - nobody listed it, so it is a bug of ours: stop loudly
            self._on_bug(error)
        finally:
            if inflight.watched:
                await self._cancellations.unwatch(inflight)
            self._let_go(inflight, entered=entered)

    async def _enter(self, inflight: InFlight) -> bool:
        """Take a slot; a message that must wait for one can be given back meanwhile."""
        if self._slots.start_now():
            return True
        task = inflight.task
        assert task is not None, "set when the task was created"
        self._waiting.add(task)
        try:
            return await self._slots.start(self._waiting_max_s)
        except asyncio.CancelledError:
            if inflight.ending is None:
                raise
            task.uncancel()
            return False
        finally:
            self._waiting.discard(task)

    def _let_go(self, inflight: InFlight, *, entered: bool) -> None:
        if inflight.task is not None:
            self._tasks.discard(inflight.task)
        self._transport.leases.release(inflight)
        self._held.remove(inflight)
        self._source.settled(inflight.delivery)
        execution, inflight.execution = inflight.execution, None
        thread = execution.abandoned if execution is not None else None
        if execution is not None:
            del execution.context  # each refers to the other
            current.set(None)  # and the asyncio task to itself
        if thread is None:
            self._free(entered=entered)
        else:
            self._free_when_done(thread)

    def _free(self, *, entered: bool) -> None:
        if entered:
            self._slots.end()
        self._slots.settled()

    def _free_when_done(self, thread: Future[Any]) -> None:
        """An abandoned thread keeps its slot until it is really free."""

        def free(_: Future[Any]) -> None:
            self._loop.call_soon_threadsafe(lambda: self._free(entered=True))

        self._threads.add(thread)
        thread.add_done_callback(self._threads.discard)
        thread.add_done_callback(free)

    @property
    def trouble(self) -> str:
        """Why its source brings nothing at the moment; empty where all is well."""
        return str(getattr(self._source, "trouble", ""))

    @property
    def is_extra(self) -> bool:
        """It brings sticky tasks, beside the source of the same task type."""
        return self._slots.only_idle

    # ------------------------------------------------------------------ stopping

    async def drain(self) -> None:
        """Take no more, and give back what no handler has been started for."""
        await self._source.stop()
        for inflight in self._held:
            if inflight.task in self._tasks and not inflight.started_at:
                inflight.interrupt(Ending.DRAIN)
                if inflight.task in self._waiting or inflight.hook is not None:
                    inflight.task.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def wait(self, within_s: float) -> bool:
        """Wait for what is running; False when something still runs."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=within_s)
        return not self._tasks

    def cut(self) -> None:
        """Cancel what ignores that it is to end; its messages are given back."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        if self._source.fenced and self._threads:
            # Handing over now would let another worker start a handler beside this one.
            logger.warning("a handler thread still runs, so nobody is told that this worker leaves")
            return
        await self._source.close()
