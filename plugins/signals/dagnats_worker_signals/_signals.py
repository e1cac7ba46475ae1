"""What a handler calls: sending signals, and waiting for them with or without a slot."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dagnats_worker import BaseContext, Released, ReleaseTask
from dagnats_worker.errors import KeyValueError, UsageError
from dagnats_worker.hookspecs import Entry, KeyValue, WorkerFacade, encode_value, signal_key
from dagnats_worker_signals._errors import SignalUsageError, timed_out
from dagnats_worker_signals._parking import Parking, Waits
from dagnats_worker_signals._watch import SignalWatch, happens

LOOK_AGAIN_S = 0.5
FULL_WAIT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all tasks of a worker have in common.

    Attributes:
        consume: Signals that were received are deleted when their step has ended.
    """

    worker: WorkerFacade
    signals: KeyValue
    watch: SignalWatch
    parking: Parking
    consume: bool = False

    def timeout_of(self, task_type: str) -> timedelta:
        """How long a handler of this type may run at all."""
        return max(task.timeout for task in self.worker.task_types if task.name == task_type)


class TaskSignals:
    """The signals of one task."""

    def __init__(self, ctx: BaseContext, shared: Shared) -> None:
        self._ctx = ctx
        self._shared = shared
        self._received: dict[str, int] = {}

    async def send_signal(self, run_id: str, name: str, data: Any) -> None:
        """Send a signal to a run. See ``Signaler``."""
        key = _checked_key(run_id, name)
        value = encode_value(data)
        most = self._shared.worker.max_payload
        if len(value) > most:
            raise SignalUsageError(
                f"signal {name!r} has {len(value)} bytes, the server takes at most {most}; store "
                "the data elsewhere and send a reference, or raise max_payload"
            )
        await self._shared.signals.put(key, value)

    async def wait_for_signal(self, name: str, timeout: timedelta, *, park: bool = False) -> bytes:
        """The data of a signal to this run. See ``Signaler``."""
        key = _checked_key(self._ctx.run_id, name)
        if not isinstance(timeout, timedelta) or timeout <= timedelta(0):
            raise SignalUsageError(f"a wait takes a timedelta longer than zero, got {timeout!r}")
        if park:
            entry = await self._parked(name, key, timeout)
        else:
            self._check_timeout(timeout)
            entry = await self._held(name, key, timeout, timeout.total_seconds())
        self._received[key] = entry.revision
        return entry.value

    def _check_timeout(self, timeout: timedelta) -> None:
        most = self._shared.timeout_of(self._ctx.task_type)
        if timeout > most:
            raise SignalUsageError(
                f"a wait of {timeout} cannot end within the {most} that a handler of "
                f"{self._ctx.task_type!r} may run; wait with park=True, or raise its timeout"
            )

    async def forget(self) -> None:
        """Delete what was received, unless it was sent again.

        Raises:
            KeyValueError: No answer; the signals are still there.
        """
        while self._received:
            key, revision = self._received.popitem()
            try:
                await self._shared.signals.delete(key, expected_revision=revision)
            except KeyValueError as error:
                if not error.conflict:
                    raise

    # ------------------------------------------------------------------ with a slot

    async def _held(self, name: str, key: str, timeout: timedelta, within_s: float) -> Entry:
        """Wait here; the worker renews the lease meanwhile, and cancels us if it has to."""
        with self._shared.watch.listening(key) as news:
            entry = await self._newest(key)
            try:
                async with asyncio.timeout(within_s):
                    while entry is None:
                        await news.wait()
                        news.clear()
                        entry = await self._again(key, news)
            except TimeoutError as late:
                entry = await self._newest(key)  # it may be there, and nobody could tell us
                if entry is None:
                    raise timed_out(name, timeout) from late
        return entry

    async def _newest(self, key: str) -> Entry | None:
        """The signal; with ``consume``, not one that this task has received before."""
        entry = await self._shared.signals.get(key)
        if entry is None or (self._shared.consume and entry.revision <= self._received.get(key, 0)):
            return None
        return entry

    async def _again(self, key: str, news: asyncio.Event) -> Entry | None:
        """A server that is away in the middle of a wait does not end it."""
        while True:
            try:
                return await self._newest(key)
            except KeyValueError as error:
                self._ctx.log.warning("looking for signal %r again: %s", key, error)
                await happens(news, LOOK_AGAIN_S)

    # ------------------------------------------------------------------ without one

    async def _parked(self, name: str, key: str, timeout: timedelta) -> Entry:
        """Leave the slot; the task is dispatched again, and comes here once more.

        The time counts from the first wait, so its end travels with the task.
        """
        if self._ctx.outcome is not None:
            raise UsageError("the task has an outcome already, and cannot wait any more")
        entry = await self._newest(key)
        if entry is not None:
            return entry
        waits = Waits.of(self._ctx.headers)
        now_s = time.time()
        until_s = waits.until_s.get(name, now_s + timeout.total_seconds())
        if name in waits.late or until_s <= now_s:
            raise timed_out(name, timeout)
        parking = self._shared.parking
        if not await parking.takes(self._ctx.delivery.stream):
            return await self._held(name, key, timeout, until_s - now_s)
        if parking.is_full():
            raise ReleaseTask(Released("delay", FULL_WAIT, "too many tasks are parked"))
        kept = self._ctx.kept_task()
        record = await parking.put(kept, key, until_s, waits.with_wait(name, until_s))
        entry = await self._newest(key)
        if entry is not None:  # sent after we looked, so that nobody may have seen both
            await parking.discard(record)
            return entry
        outcome = Released("parked", kept=True)
        self._ctx.record(outcome)
        raise ReleaseTask(outcome)


def _checked_key(run_id: str, name: str) -> str:
    try:
        return signal_key(run_id, name)
    except (ValueError, TypeError) as error:
        raise SignalUsageError(str(error)) from error
