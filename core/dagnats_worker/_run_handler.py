"""Running a handler: whatever it does, an outcome comes out, or the reason why there is none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from dagnats_worker._ack import ACKED, Drop, Verdict
from dagnats_worker._context import TaskContext
from dagnats_worker._counters import Counters
from dagnats_worker._execution import Execution
from dagnats_worker._handlers import HandlerSpec
from dagnats_worker._inflight import Ending, InFlight
from dagnats_worker._outcome import (
    Completed,
    Failed,
    Outcome,
    Released,
    causes,
    check_outcome,
    failed,
)
from dagnats_worker._plugins import Hooks
from dagnats_worker.errors import (
    DagnatsError,
    NonRetryableError,
    ReleaseTask,
    SupersededError,
    TaskError,
    UsageError,
    describe,
)

logger = logging.getLogger("dagnats_worker.task")

Invoke = Callable[[TaskContext], Awaitable[Any]]


class StoppedError(DagnatsError):
    """The task ends without an outcome of its own."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"stopped with {verdict}")
        self.verdict = verdict


class HandlerRunner:
    """Runs the handler of one task type."""

    def __init__(self, spec: HandlerSpec, invoke: Invoke, hooks: Hooks, counters: Counters) -> None:
        self._encode = spec.encode_output
        self._invoke = invoke
        self._hooks = hooks
        self._counters = counters
        self._waits_for_handler = spec.executor == "thread"

    async def run(self, execution: Execution) -> Outcome:
        """Call the handler and return how the task ends.

        Raises:
            StoppedError: The worker ends the task and nothing is published.
        """
        inflight = execution.inflight
        started_at = time.monotonic()
        inflight.started_at = started_at
        inflight.waits_for_handler = self._waits_for_handler
        error: BaseException | None = None
        value: Any = None
        try:
            value = await self._interruptible(execution, inflight)
        except asyncio.CancelledError as cancelled:
            if inflight.ending is None and _cancelling():
                raise
            error = cancelled
        except GeneratorExit:
            raise  # the interpreter takes the coroutine apart; nothing can be awaited any more
        except BaseException as raised:  # noqa: BLE001 - SystemExit and the like end the task, not the worker
            error = raised
        execution.handler_duration = timedelta(seconds=time.monotonic() - started_at)
        if inflight.ending is not None and not _stands(execution, inflight.ending):
            return await self._ended(execution, inflight.ending)
        if error is not None and any(isinstance(one, SupersededError) for one in causes(error)):
            raise StoppedError(Drop(describe(error)))
        return await self._outcome(execution, value, error)

    async def _interruptible(self, execution: Execution, inflight: InFlight) -> Any:
        if inflight.ending is not None:
            return None
        inflight.in_handler = True
        try:
            return await self._invoke(execution.context)
        finally:
            inflight.in_handler = False
            if inflight.cancelled_task and inflight.task is not None:
                inflight.task.uncancel()  # ours is taken back; anybody else's would still count

    async def _outcome(
        self, execution: Execution, value: Any, error: BaseException | None
    ) -> Outcome:
        recorded = execution.outcome
        if isinstance(error, ReleaseTask):
            try:
                return recorded or check_outcome(error.outcome)
            except UsageError as malformed:
                error = malformed
        if recorded is not None:
            if error is not None and not isinstance(error, UsageError):
                _ignored(execution, f"raised {type(error).__name__}: {describe(error)}", error)
            elif error is None and value is not None:
                _ignored(execution, f"returned {type(value).__name__}")
            return await self._replaced(execution, recorded)
        if error is not None:
            return await self._replaced(execution, _failure(error))
        try:
            return Completed(self._encode(value))
        except NonRetryableError as not_json:
            return await self._replaced(execution, _failure(not_json))

    async def _replaced(self, execution: Execution, outcome: Outcome) -> Outcome:
        """Let plugins answer a failure with another outcome."""
        if not isinstance(outcome, Failed):
            return outcome
        error = outcome.exception or _error_of(outcome)
        _log_failure(execution, outcome, error)
        if not self._hooks.on_error:
            return outcome
        answer: Outcome | None = await self._hooks.first(
            self._hooks.on_error,
            execution.inflight,
            accept=check_outcome,
            ctx=execution.context,
            error=error,
            outcome=outcome,
        )
        return outcome if answer is None else answer

    async def _ended(self, execution: Execution, ending: Ending) -> Outcome:
        match ending:
            case Ending.TIMEOUT:
                text = f"timeout after {execution.inflight.timeout_s:g} s"
                failure = Failed(text, "retriable", exception=TimeoutError(text))
                return await self._replaced(execution, failure)
            case Ending.DRAIN:
                return Released("drain")
            case Ending.RUN_CANCELLED:
                self._counters.skipped += 1
                self._counters.skipped_cancelled += 1
                raise StoppedError(ACKED)
            case Ending.LEASE_LOST:
                raise StoppedError(Drop("its lease was lost"))


def _stands(execution: Execution, ending: Ending) -> bool:
    """What the handler has recorded before its time was over is how the task ends."""
    return execution.outcome is not None and ending in (Ending.TIMEOUT, Ending.DRAIN)


def _cancelling() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _failure(error: BaseException) -> Failed:
    if isinstance(error, asyncio.CancelledError):
        text = "the handler raised CancelledError, and nobody had asked it to stop"
        return Failed(text, "retriable", exception=error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        text = f"the handler raised {error!r}, which ends this attempt and not the worker"
        return Failed(text, "retriable", exception=error)
    return failed(error)


def _error_of(failure: Failed) -> TaskError:
    """What a handler would have raised for a failure that it has recorded as a text."""
    kind = NonRetryableError if failure.failure_type == "non_retriable" else TaskError
    return kind(failure.error)


def _ignored(execution: Execution, what: str, error: BaseException | None = None) -> None:
    execution.context.log.error(
        "the handler recorded %s and then %s; the recorded outcome stands",
        type(execution.outcome).__name__,
        what,
        exc_info=error,
    )


def _log_failure(execution: Execution, failure: Failed, error: BaseException) -> None:
    """With a traceback where the handler did not expect the error itself."""
    expected = isinstance(error, TaskError) or error.__traceback__ is None
    execution.context.log.warning(
        "%s of %s failed (%s, attempt %d): %s",
        execution.environment.task_type.name,
        execution.task.task_id,
        failure.failure_type,
        execution.attempt,
        failure.error,
        exc_info=None if expected else error,
    )
