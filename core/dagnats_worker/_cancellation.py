"""Cancelled runs: queued tasks are skipped, running handlers are told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from dagnats_worker._config import WorkerConfig
from dagnats_worker._ending import RUNS_STREAM, run_key_subject
from dagnats_worker._execution import Execution
from dagnats_worker._inflight import Ending, InFlight
from dagnats_worker._protocol import WORKFLOW_CANCELLED, decode_event, history_subject
from dagnats_worker._transport import Transport
from dagnats_worker.errors import DecodeError, TransportError

logger = logging.getLogger("dagnats_worker.cancellation")

HISTORY_STREAM = "WORKFLOW_HISTORY"
CANCELLED = "cancelled"


class _Snapshot(msgspec.Struct):
    status: str = ""


_decode_snapshot = msgspec.json.Decoder(_Snapshot).decode


def snapshot_is_cancelled(data: bytes) -> bool:
    """Whether a run's snapshot, as the engine writes it, says cancelled."""
    try:
        return _decode_snapshot(data).status == CANCELLED
    except ValueError:
        return False


def event_is_cancel(data: bytes) -> bool:
    """Whether an event asks for the cancellation of its run."""
    try:
        return decode_event(data).type == WORKFLOW_CANCELLED
    except DecodeError:
        return False


class Lookup:
    """Asks for the newest message of many subjects; what comes meanwhile is in the next round."""

    def __init__(self, transport: Transport, stream: str, batch_max: int) -> None:
        self._transport = transport
        self._stream = stream
        self._batch_max = batch_max
        self._waiting: list[tuple[str, asyncio.Future[bytes | None]]] = []
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def newest(self, subject: str) -> asyncio.Future[bytes | None]:
        """Done with the newest message of a subject, or None where there is none.

        It fails with ``TransportError`` where nobody answers.
        """
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        self._waiting.append((subject, future))
        if self._task is None:
            self._task = self._loop.create_task(self._ask(), name=f"look up {self._stream}")
        return future

    async def _ask(self) -> None:
        while self._waiting:
            batch = self._waiting[: self._batch_max]
            del self._waiting[: self._batch_max]
            subjects = list({subject for subject, _ in batch})
            try:
                found = await self._transport.newest(self._stream, subjects)
            except TransportError as error:
                logger.warning("cannot look up what became of %d runs: %s", len(subjects), error)
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for subject, future in batch:
                if not future.done():
                    future.set_result(found.get(subject))
        self._task = None


class Cancellations:
    """Knows which runs are cancelled, as cheaply as the age of a task allows."""

    def __init__(self, transport: Transport, config: WorkerConfig) -> None:
        self._transport = transport
        self._config = config
        self._fresh_ns = int(config.fresh_for.total_seconds() * 1e9)
        self._snapshots = Lookup(transport, RUNS_STREAM, config.cancel_lookups_max)
        self._events = Lookup(transport, HISTORY_STREAM, config.cancel_lookups_max)
        self._watches: dict[str, tuple[list[InFlight], Callable[[], Awaitable[None]]]] = {}
        self._unasked: set[str] = set()  # watched, and nobody has looked for earlier requests yet
        self.with_engine = True

    # ------------------------------------------------------------------ queued tasks

    def is_fresh(self, execution: Execution) -> bool:
        """Too young to have been cancelled; a clock that goes wrong makes nothing young."""
        if execution.delivery.relayed:
            return False
        age_ns = time.time_ns() - execution.dispatched_ns
        return 0 <= age_ns < self._fresh_ns

    async def is_cancelled(self, execution: Execution) -> bool:
        """Whether the run of a queued task is cancelled; False where nobody can tell."""
        run_id = execution.task.run_id
        if self.with_engine:
            snapshot = await self.snapshot(run_id)
            if snapshot is not None:
                return snapshot_is_cancelled(snapshot)
        if execution.marked_managed:
            return False
        try:
            newest = await self._events.newest(history_subject(run_id))
        except TransportError:
            return False
        return newest is not None and event_is_cancel(newest)

    async def snapshot(self, run_id: str) -> bytes | None:
        """The engine's snapshot of a run; None where there is none, or no answer."""
        try:
            return await self._snapshots.newest(run_key_subject(run_id))
        except TransportError:
            return None

    async def has_history(self, run_id: str) -> bool:
        """Whether there is any event of a run; asked once for all runs that are looked up together.

        Raises:
            TransportError: Nobody can tell.
        """
        return await self._events.newest(history_subject(run_id)) is not None

    # ------------------------------------------------------------------ running handlers

    async def watch(self, inflight: InFlight) -> None:
        """Listen for the cancellation of a handler's run."""
        inflight.watched = True
        assert inflight.execution is not None, "only started handlers are watched"
        run_id = inflight.execution.task.run_id
        if run_id in self._watches:
            self._watches[run_id][0].append(inflight)
            return
        watched = [inflight]

        def on_event(_subject: str, data: bytes, _headers: Mapping[str, str]) -> None:
            if event_is_cancel(data):
                self._cancel(watched)

        end = await self._transport.subscribe(history_subject(run_id), on_event)
        self._watches[run_id] = (watched, end)
        self._unasked.add(run_id)

    async def unwatch(self, inflight: InFlight) -> None:
        """The handler has ended."""
        assert inflight.execution is not None, "only started handlers are watched"
        run_id = inflight.execution.task.run_id
        watched, end = self._watches.get(run_id, ([], None))
        if inflight in watched:
            watched.remove(inflight)
        if end is not None and not watched:
            del self._watches[run_id]
            self._unasked.discard(run_id)
            await end()

    async def poll(self) -> None:
        """Look at the watched runs: for cancels that the engine decides itself, and once for those
        that were asked for before the watch began.
        """
        run_ids = list(self._watches)
        for start in range(0, len(run_ids), self._config.cancel_lookups_max):
            part = run_ids[start : start + self._config.cancel_lookups_max]
            if self.with_engine:
                subjects = {run_key_subject(run_id): run_id for run_id in part}
                await self._poll_part(RUNS_STREAM, subjects, snapshot_is_cancelled)
            unasked = {
                history_subject(run_id): run_id for run_id in part if run_id in self._unasked
            }
            if unasked:
                await self._poll_part(HISTORY_STREAM, unasked, event_is_cancel)
                self._unasked.difference_update(unasked.values())

    async def _poll_part(
        self, stream: str, run_ids: Mapping[str, str], is_cancelled: Callable[[bytes], bool]
    ) -> None:
        newest = await self._transport.newest(stream, list(run_ids))
        for subject, data in newest.items():
            watch = self._watches.get(run_ids[subject])
            if watch is not None and is_cancelled(data):
                self._cancel(watch[0])

    def _cancel(self, watched: list[InFlight]) -> None:
        for inflight in list(watched):
            logger.info("run of %s was cancelled; ending its handler", inflight.delivery)
            inflight.interrupt(Ending.RUN_CANCELLED)
