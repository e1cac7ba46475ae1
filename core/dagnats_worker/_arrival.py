"""Before a task is run: is it done already, is its run cancelled, has it crashed too often?"""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from dagnats_worker._ack import ACKED, Nak, Verdict
from dagnats_worker._cancellation import Cancellations
from dagnats_worker._config import WorkerConfig
from dagnats_worker._counters import Counters
from dagnats_worker._dead_letters import DeadLetters
from dagnats_worker._ending import is_managed
from dagnats_worker._events import Events
from dagnats_worker._execution import Execution
from dagnats_worker._kept import message_name
from dagnats_worker._outcome import Failed
from dagnats_worker._protocol import HEADER_MSG_ID, STEP_CONTINUE, STEP_FAILED, decode_task
from dagnats_worker._redelivery import Past, read_past
from dagnats_worker._snapshot import COMPLETED, StepState, decode_snapshot
from dagnats_worker._transport import StoredEvent
from dagnats_worker.errors import DecodeError

logger = logging.getLogger("dagnats_worker.dispatcher")

TASKS_STREAM = "TASK_QUEUES"
POSTPONED = ".rate_retry"
"""How the id of a task ends that was postponed, or whose sticky worker may have done it since."""


class Arrivals:
    """Looks at a task before anything is published for it; a fresh first delivery costs nothing."""

    def __init__(
        self,
        cancellations: Cancellations,
        events: Events,
        dead_letters: DeadLetters,
        config: WorkerConfig,
        counters: Counters,
        *,
        always_read_history: bool = False,
    ) -> None:
        self._cancellations = cancellations
        self._events = events
        self._dead_letters = dead_letters
        self._config = config
        self._counters = counters
        self._always_read_history = always_read_history

    async def check(self, execution: Execution) -> Verdict | None:
        """The verdict on a task that is not to be run; None for one that is.

        A task that has crashed its worker too often is not run either: its outcome is then set.

        Raises:
            TransportError: The history cannot be read; the task is to be given back.
        """
        delivery = execution.delivery
        again = delivery.deliveries > 1 or delivery.doubtful or execution.was_kept
        if again or self._always_read_history:
            self._counters.redelivered += delivery.deliveries > 1
            verdict = await self._look_back(execution)
            if verdict is not None:
                return verdict
        if self._cancellations.with_engine and (execution.task.attempt or _may_be_done(execution)):
            verdict = await self._ask_engine(execution)
            if verdict is not None:
                return verdict
        if self._cancellations.is_fresh(execution):
            return None
        if await self._cancellations.is_cancelled(execution):
            return self._skip_cancelled(execution)
        return None

    async def _ask_engine(self, execution: Execution) -> Verdict | None:
        """A task that the engine sends again leaves out what the run's snapshot says."""
        task = execution.task
        data = await self._cancellations.snapshot(task.run_id)
        if data is None:
            return None
        snapshot = decode_snapshot(data)
        step = snapshot.steps.get(task.step_id, StepState())
        if _may_be_done(execution) and step.status == COMPLETED:
            logger.info("%s skipped: its step is completed already", execution.delivery)
            self._counters.skipped += 1
            return ACKED
        if task.attempt and not task.iteration:
            task.iteration = step.iterations
        if not execution.trace_headers():
            task.traceparent = snapshot.trace_parent
        return None

    async def _look_back(self, execution: Execution) -> Verdict | None:
        task = execution.task
        past = read_past(await self._history(execution), task.step_id)
        execution.seen_sequence = past.last_sequence
        execution.last_delivery = past.last_delivery
        if past.outcome is not None:
            return await self._already_done(execution, past)
        if past.cancelled:
            return self._skip_cancelled(execution)
        if message_name(execution.delivery) in past.kept or _was_sent_twice(execution, past):
            logger.info("%s skipped: its task goes on with another message", execution.delivery)
            self._counters.skipped += 1
            return ACKED
        left_s = (past.rests_until_ns - time.time_ns()) / 1e9
        if execution.delivery.doubtful and left_s > 0:
            # The consumer that was to wait is gone, and its successor knows of no delay.
            return Nak(timedelta(seconds=left_s))
        if not task.attempt and not execution.marked_managed:
            execution.attempt = past.attempt
        if past.crashes >= self._config.max_deliveries:
            self._give_up(execution, past)
        return None

    async def _history(self, execution: Execution) -> list[StoredEvent]:
        """The events since the task was dispatched."""
        run_id = execution.task.run_id
        is_first = execution.delivery.deliveries == 1 and not execution.was_kept
        if is_first and not await self._cancellations.has_history(run_id):
            execution.opens_run = execution.delivery.doubtful
            return []  # the usual answer, and much cheaper than to read that there is nothing
        return await execution.environment.transport.history(
            run_id,
            since_ns=execution.dispatched_ns,
            limit=self._config.history_events_max,
        )

    async def _already_done(self, execution: Execution, past: Past) -> Verdict:
        """Ack, after doing what a crash between the outcome and the ack may have left undone."""
        logger.info("%s was ended by %s already", execution.delivery, past.outcome)
        self._counters.skipped += 1
        if past.outcome in (STEP_CONTINUE, STEP_FAILED) and not await is_managed(execution):
            await self._finish(execution, past)
        return ACKED

    async def _finish(self, execution: Execution, past: Past) -> None:
        if past.outcome == STEP_FAILED:
            execution.attempt = max(1, past.attempt - 1)
            await self._dead_letters.add(execution, past.failure)
        elif not past.started_again and not await self._is_queued(execution):
            await self._events.next_iteration(execution)

    async def _is_queued(self, execution: Execution) -> bool:
        """Whether the next turn of the loop waits in the work queue, behind this one."""
        subject = execution.delivery.subject
        newest = await execution.environment.transport.newest(TASKS_STREAM, [subject])
        try:
            waiting = decode_task(newest[subject])
        except (KeyError, DecodeError):
            return False
        task = execution.task
        return waiting.step_id == task.step_id and waiting.iteration > task.iteration

    def _give_up(self, execution: Execution, past: Past) -> None:
        text = f"gave up: the worker crashed {past.crashes} times in a row while it ran this task"
        logger.error("%s: %s", execution.delivery, text)
        if not execution.task.attempt:
            execution.attempt -= 1  # there is no next start; the last one is what failed
        execution.started_sequence = past.last_sequence
        execution.outcome = Failed(text, "non_retriable")

    def _skip_cancelled(self, execution: Execution) -> Verdict:
        logger.info("%s skipped: its run is cancelled", execution.delivery)
        self._counters.skipped += 1
        self._counters.skipped_cancelled += 1
        return ACKED


def _was_sent_twice(execution: Execution, past: Past) -> bool:
    """Whether who keeps the task has dispatched it twice, and the other message was started.

    That other one comes again until it has an outcome. Of a message that may itself be the one that
    was started, nobody can tell.
    """
    delivery = execution.delivery
    if not execution.was_kept or delivery.deliveries > 1 or delivery.doubtful:
        return False
    return past.last_delivery > execution.earlier.deliveries


def _may_be_done(execution: Execution) -> bool:
    return execution.delivery.headers.get(HEADER_MSG_ID, "").endswith(POSTPONED)
