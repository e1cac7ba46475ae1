"""The heartbeat of a worker: its entry in the directory, for as long as it takes tasks.

Entries are sent by the thread that renews the leases, over its own connection, so that a handler
that blocks the event loop does not make the worker disappear. That thread only puts together what
the loop has prepared; where the loop is late, the entry says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import TypeVar

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import KeepAlive, WorkerFacade
from dagnats_worker_directory._bucket import BUCKET
from dagnats_worker_directory._registration import WorkerRegistration, now_text
from dagnats_worker_directory._report import Report

logger = logging.getLogger("dagnats_worker_directory")

LOOK_EVERY_S = 1.0
BLOCKED_AFTER_S = 5.0
RETRY_AFTER_MAX = timedelta(seconds=5)
LAST_WORD_MAX = timedelta(seconds=3)

T = TypeVar("T")


class Heartbeat:
    """Keeps one worker listed.

    Args:
        worker: Whose state and load the entry tells.
        registration: What does not change.
        report: What does not change of the worker's report.
        every: How often the entry is written.
    """

    def __init__(
        self,
        worker: WorkerFacade,
        registration: WorkerRegistration,
        report: Report,
        every: timedelta,
    ) -> None:
        self._worker = worker
        self._registration = registration
        self._report = report
        self._every = every
        self._retry_after = min(every, RETRY_AFTER_MAX)
        self._subject = f"$KV.{BUCKET}.{worker.worker_id}"
        self._looked_at = (report, monotonic())
        self._end_sending: Callable[[], None] | None = None
        self._period = every
        self._answered = asyncio.Event()
        self._trouble = ""
        self._told = False

    # ------------------------------------------------------------------ on the event loop

    async def run(self) -> None:
        """Begin when the worker takes tasks, and look at it again and again."""
        await self._worker.wait_for("running")
        if self._worker.state == "stopped":
            return
        self._look()
        self._send(self._every)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._look()
            await self._tend()

    async def tell_drain(self) -> None:
        """Write at once that the worker drains."""
        await self._worker.wait_for("draining")
        if self._end_sending is not None:
            self._look()
            self._send(self._period)

    async def end(self) -> None:
        """Take the worker off the list."""
        if self._end_sending is None:
            return
        await _within(LAST_WORD_MAX, self._answered.wait())  # nothing may overtake what follows
        self._end_sending()
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def ended(reason: str) -> None:
            if not answered.done():
                answered.set_result(reason)

        delete = KeepAlive(
            self._subject,
            headers={"KV-Operation": "DEL"},
            answered=lambda answer: ended(refusal(answer)),
            failed=ended,
        )
        end_sending = self._worker.keep_alive(delete, LAST_WORD_MAX)
        try:
            reason = await _within(LAST_WORD_MAX, answered)
        finally:
            end_sending()
        if reason != "":
            logger.info("the entry in the directory is left to expire: %s", reason or "no answer")

    def _look(self) -> None:
        worker = self._worker
        report = replace(
            self._report,
            state=worker.state,
            slots_in_use=worker.stats().slots_in_use,
            slots=worker.max_tasks,
            plugins={
                one.name: one.version if one.state == "active" else f"{one.version} ({one.state})"
                for one in worker.plugins
            },
        )
        self._looked_at = (report, monotonic())

    def _send(self, every: timedelta) -> None:
        """Send now, and then every so often."""
        if self._end_sending is not None:
            self._end_sending()
        self._period = every
        request = KeepAlive(
            self._subject, self._entry, answered=self._on_answer, failed=self._on_failure
        )
        self._end_sending = self._worker.keep_alive(request, every)

    def _on_answer(self, answer: bytes) -> None:
        reason = refusal(answer)
        if reason:
            self._on_failure(reason)
            return
        self._answered.set()
        self._trouble = ""

    def _on_failure(self, reason: str) -> None:
        self._answered.set()
        self._trouble = reason

    async def _tend(self) -> None:
        """In trouble, try again sooner than the next beat, so that the entry does not expire."""
        period = self._retry_after if self._trouble else self._every
        if period != self._period:
            self._send(period)
        if self._trouble and not self._told:
            await self._tell_trouble()
        elif self._told and not self._trouble:
            self._told = False
            logger.info("the worker is listed in the directory now")

    async def _tell_trouble(self) -> None:
        """Say once what is wrong; reading tells why better than a request without an answer."""
        reason = self._trouble
        try:
            await self._worker.kv(BUCKET).get(self._worker.worker_id)
        except KeyValueError as error:
            reason = str(error)
        if self._trouble:
            self._told = True
            logger.warning(
                "the worker is not listed in the directory, and tries again every %g s: %s",
                self._retry_after.total_seconds(),
                reason,
            )

    # ------------------------------------------------------------------ in the thread of leases

    def _entry(self) -> bytes:
        report, looked_at = self._looked_at
        late_s = monotonic() - looked_at
        if late_s > BLOCKED_AFTER_S:
            report = replace(report, loop_blocked_s=int(late_s))
        entry = replace(self._registration, metadata=report.to_metadata(), last_seen=now_text())
        return entry.encode()


def refusal(answer: bytes) -> str:
    """Why a stream has not stored what it was sent; empty where it has."""
    try:
        error = json.loads(answer).get("error")
    except (ValueError, AttributeError):
        return f"an answer that is none of JetStream's: {answer[:80]!r}"
    return "" if error is None else str(error.get("description", error))


async def _within(bound: timedelta, what: Awaitable[T]) -> T | None:
    """What is awaited; None where it takes too long."""
    try:
        async with asyncio.timeout(bound.total_seconds()):
            return await what
    except TimeoutError:
        return None
