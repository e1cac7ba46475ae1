"""What an outcome means for the message: who retries, and what is published before the verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

from dagnats_worker._ack import ACKED, Ack, Nak
from dagnats_worker._execution import Execution
from dagnats_worker._outcome import Completed, Continued, Failed, Outcome, Paused, Released
from dagnats_worker._retry import Retry

logger = logging.getLogger("dagnats_worker.dispatcher")

T = TypeVar("T")

RUNS_STREAM = "KV_workflow_runs"
ENVELOPE_BYTES_MAX = 4096
"""What an event with the longest ids needs beside its payload and its trace, headers included."""


@dataclass(slots=True)
class Plan:
    """How a task ends.

    Attributes:
        outcome: What is published.
        verdict: What then becomes of the message.
        dead_letter: The task is copied to the dead letters, because nobody else does it.
        next_iteration: The next turn of an agent loop is dispatched, because nobody else does it.
    """

    outcome: Outcome
    verdict: Ack | Nak
    dead_letter: bool = False
    next_iteration: bool = False


def run_key_subject(run_id: str) -> str:
    """The subject of a run's snapshot in the engine's bucket."""
    return f"$KV.workflow_runs.run.{run_id}"


async def is_managed(execution: Execution) -> bool:
    """Whether an engine manages the run and is the only one to retry it.

    Asks the server only where the message does not tell.

    Raises:
        TransportError: Nobody knows; the task is to be given back.
    """
    if execution.marked_managed:
        return True
    subject = run_key_subject(execution.task.run_id)
    transport = execution.environment.transport
    return subject in await transport.newest(RUNS_STREAM, [subject])


async def plan(execution: Execution, outcome: Outcome, retry: Retry) -> Plan:
    """Decide before anything is published, so that what is given back publishes no outcome."""
    outcome = _fitting(execution, outcome)
    match outcome:
        case Completed():
            return Plan(outcome, ACKED)
        case Continued():
            return Plan(outcome, ACKED, next_iteration=not await is_managed(execution))
        case Paused(_, duration):
            return Plan(outcome, Nak(duration))
        case Released(_, delay, kept=kept):
            return Plan(outcome, ACKED if kept else Nak(delay))
        case Failed():
            return await _plan_failure(execution, outcome, retry)


async def _plan_failure(execution: Execution, failure: Failed, retry: Retry) -> Plan:
    if failure.failure_type == "retriable" and not _retriable(execution, failure, retry):
        failure = replace(failure, failure_type="non_retriable")
    if await is_managed(execution):
        return Plan(failure, ACKED)
    if failure.failure_type != "non_retriable":
        delay = _next_delay(execution, failure, retry)
        if delay is not None:
            return Plan(Released("retry", delay, failure.error), Nak(delay))
    final = Failed(failure.error, "non_retriable", exception=failure.exception)
    return Plan(final, ACKED, dead_letter=True)


def _retriable(execution: Execution, failure: Failed, retry: Retry) -> bool:
    return _answer(execution, retry, lambda policy: policy.retriable(failure))


def _next_delay(execution: Execution, failure: Failed, retry: Retry) -> timedelta | None:
    attempt = execution.attempt
    since_first_s = max(0.0, (time.time_ns() - execution.delivery.timestamp_ns) / 1e9)
    return _answer(
        execution,
        retry,
        lambda policy: policy.next_delay(failure, attempt=attempt, since_first_s=since_first_s),
    )


def _answer(execution: Execution, retry: Retry, question: Callable[[Retry], T]) -> T:
    """What the policy says; where it raises, which is its author's mistake, the default one."""
    try:
        return question(retry)
    except Exception:  # a policy may be any code, and must not take the worker down
        task_type = execution.environment.task_type.name
        logger.exception("the retry policy of %r failed; the default one decides", task_type)
        return question(Retry())


def _fitting(execution: Execution, outcome: Outcome) -> Outcome:
    """An output that the server would refuse becomes a failure that names both sizes."""
    if not isinstance(outcome, Completed | Continued):
        return outcome
    size = len(outcome.output)
    max_payload = execution.environment.transport.max_payload
    if size < max_payload // 2:
        return outcome
    traced = sum(map(len, execution.trace_headers().values()))
    if size + ENVELOPE_BYTES_MAX + 2 * traced <= max_payload:
        return outcome
    return Failed(
        f"the output has {size} bytes, but the server's max_payload is {max_payload} bytes, of "
        f"which the event itself needs up to {ENVELOPE_BYTES_MAX + 2 * traced}; store the output "
        "elsewhere and return a reference, or raise max_payload",
        "non_retriable",
    )
