"""What an outcome means for the message, and who retries: the engine, or we.

Method: one execution and one outcome in, one plan out. Fake: the transport, which notes what it is
asked; the clock is real, and only differences that no machine is slow enough for are compared.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from execution_support import FakeTransport, make_execution
from tenacity import (
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_fixed,
)

from dagnats_worker import (
    Completed,
    Continued,
    Failed,
    NonRetryableError,
    Outcome,
    Paused,
    Released,
    Retry,
    TransportError,
)
from dagnats_worker._ack import ACKED, Nak
from dagnats_worker._ending import ENVELOPE_BYTES_MAX, Plan, plan
from dagnats_worker._outcome import failed

SOON = timedelta(seconds=3)
RETRY = Retry(stop=stop_after_attempt(3), wait=wait_fixed(2))
RUN_KEY = "$KV.workflow_runs.run.run-1"
MARKS: list[dict[str, Any]] = [
    {"workflow_name": "hello"},
    {"dispatch_nonce": "5d41402abc4b2a76b9719d911017c592"},
    {"headers": {"Dagnats-Dlq-Task-Subject": "task.shout.run-1"}},
]


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


def with_snapshot(transport: FakeTransport) -> FakeTransport:
    """A server on which the engine has a run of that id."""
    transport.snapshots[RUN_KEY] = json.dumps({"run_id": "run-1", "status": "running"}).encode()
    return transport


# What did not fail


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Completed(b"1"), ACKED),
        (Completed(), ACKED),
        (Paused("tomorrow", SOON), Nak(SOON)),
        (Released("drain"), Nak(timedelta(0))),
        (Released("delay", SOON), Nak(SOON)),
    ],
)
async def test_outcome_that_is_no_failure_asks_nobody(
    transport: FakeTransport, outcome: Outcome, verdict: Any
) -> None:
    ending = await plan(make_execution(transport), outcome, RETRY)
    assert ending == Plan(outcome, verdict)
    assert transport.asked == []


async def test_next_iteration_is_dispatched_where_no_engine_does_it(
    transport: FakeTransport,
) -> None:
    ending = await plan(make_execution(transport), Continued(b"1"), RETRY)
    assert ending == Plan(Continued(b"1"), ACKED, next_iteration=True)


async def test_next_iteration_of_a_managed_run_is_the_engines(transport: FakeTransport) -> None:
    ending = await plan(make_execution(with_snapshot(transport)), Continued(b"1"), RETRY)
    assert ending == Plan(Continued(b"1"), ACKED)


# Who manages the run


@pytest.mark.parametrize("mark", MARKS)
async def test_mark_of_an_engine_is_believed_without_asking(
    transport: FakeTransport, mark: dict[str, Any]
) -> None:
    failure = Failed("no", "retriable")
    assert await plan(make_execution(transport, **mark), failure, RETRY) == Plan(failure, ACKED)
    assert transport.asked == []


async def test_snapshot_of_the_run_is_asked_for_where_the_message_has_no_mark(
    transport: FakeTransport,
) -> None:
    failure = Failed("no", "retriable")
    ending = await plan(make_execution(with_snapshot(transport)), failure, RETRY)
    assert ending == Plan(failure, ACKED)
    assert transport.asked == [("KV_workflow_runs", [RUN_KEY])]


async def test_other_headers_are_no_mark(transport: FakeTransport) -> None:
    execution = make_execution(transport, headers={"Nats-Msg-Id": "x", "traceparent": "y"})
    ending = await plan(execution, Failed("no", "retriable"), RETRY)
    assert ending.verdict == Nak(timedelta(seconds=2))


@pytest.mark.parametrize(
    "outcome",
    [Failed("no", "retriable"), Failed("no", "non_retriable"), Continued()],
    ids=["retriable", "non_retriable", "continued"],
)
async def test_nobody_guesses_who_manages_a_run(transport: FakeTransport, outcome: Outcome) -> None:
    transport.is_gone = True
    with pytest.raises(TransportError):
        await plan(make_execution(transport), outcome, RETRY)


# Failures of managed runs


@pytest.mark.parametrize(
    "failure",
    [
        Failed("no", "retriable"),
        Failed("never", "non_retriable"),
        Failed("busy", "retry_after", SOON),
    ],
)
@pytest.mark.parametrize("attempt", [1, 99])
async def test_engine_is_told_and_the_task_is_acked(
    transport: FakeTransport, failure: Failed, attempt: int
) -> None:
    execution = make_execution(transport, workflow_name="hello", attempt=attempt)
    assert await plan(execution, failure, RETRY) == Plan(failure, ACKED)


async def test_policy_classifies_the_failures_of_a_managed_run(transport: FakeTransport) -> None:
    retry = Retry(retry=retry_if_exception_type(ConnectionError))
    execution = make_execution(transport, workflow_name="hello")
    hopeless = await plan(execution, failed(ValueError("no")), retry)
    assert hopeless == Plan(Failed("no", "non_retriable"), ACKED)
    hopeful = await plan(execution, failed(ConnectionError("cut")), retry)
    assert hopeful == Plan(Failed("cut", "retriable"), ACKED)


async def test_policy_is_not_asked_about_a_delay_that_the_handler_chose(
    transport: FakeTransport,
) -> None:
    retry = Retry(retry=retry_if_exception_type(ConnectionError))
    busy = Failed("busy", "retry_after", SOON)
    execution = make_execution(transport, workflow_name="hello")
    assert await plan(execution, busy, retry) == Plan(busy, ACKED)


# Failures without an engine


async def test_failure_is_tried_again_and_not_published(transport: FakeTransport) -> None:
    ending = await plan(make_execution(transport), failed(ValueError("no")), RETRY)
    delay = timedelta(seconds=2)
    assert ending == Plan(Released("retry", delay, "no"), Nak(delay))


@pytest.mark.parametrize(("attempt", "is_last"), [(1, False), (2, False), (3, True), (4, True)])
async def test_last_attempt_fails_for_good_and_leaves_a_dead_letter(
    transport: FakeTransport, attempt: int, *, is_last: bool
) -> None:
    error = ValueError("no")
    execution = make_execution(transport, attempt=attempt)
    ending = await plan(execution, failed(error), RETRY)
    if not is_last:
        assert isinstance(ending.verdict, Nak)
        return
    assert ending == Plan(Failed("no", "non_retriable"), ACKED, dead_letter=True)
    assert isinstance(ending.outcome, Failed)
    assert ending.outcome.exception is error


async def test_hopeless_failure_skips_the_other_attempts(transport: FakeTransport) -> None:
    ending = await plan(make_execution(transport), failed(NonRetryableError("never")), RETRY)
    assert ending == Plan(Failed("never", "non_retriable"), ACKED, dead_letter=True)


async def test_policy_decides_which_failure_is_hopeless(transport: FakeTransport) -> None:
    retry = Retry(retry=retry_if_exception_type(ConnectionError))
    ending = await plan(make_execution(transport), failed(ValueError("no")), retry)
    assert ending == Plan(Failed("no", "non_retriable"), ACKED, dead_letter=True)


async def test_handler_chooses_the_delay(transport: FakeTransport) -> None:
    busy = Failed("busy", "retry_after", timedelta(minutes=7))
    ending = await plan(make_execution(transport), busy, RETRY)
    delay = timedelta(minutes=7)
    assert ending == Plan(Released("retry", delay, "busy"), Nak(delay))


async def test_handler_that_chooses_the_delay_has_no_more_attempts_than_others(
    transport: FakeTransport,
) -> None:
    busy = Failed("busy", "retry_after", SOON)
    ending = await plan(make_execution(transport, attempt=3), busy, RETRY)
    assert ending == Plan(Failed("busy", "non_retriable"), ACKED, dead_letter=True)


@pytest.mark.parametrize(
    ("age_s", "is_last"), [(-3600, False), (0, False), (30, False), (3600, True)]
)
async def test_time_since_the_task_was_submitted_counts(
    transport: FakeTransport, age_s: int, *, is_last: bool
) -> None:
    retry = Retry(stop=stop_after_delay(timedelta(minutes=5)), wait=wait_fixed(2))
    execution = make_execution(transport, age=timedelta(seconds=age_s))
    ending = await plan(execution, Failed("no", "retriable"), retry)
    assert ending.dead_letter == is_last


# A policy is its author's code


def raise_it(*_: object) -> Any:
    raise AttributeError("'ValueError' object has no attribute 'status'")


broken: Any = raise_it
"""A strategy that was written for other exceptions; tenacity takes any function."""


@pytest.mark.parametrize(
    "retry",
    [
        Retry(retry=retry_if_exception(broken)),
        Retry(stop=broken),
        Retry(wait=broken),
        Retry(stop=stop_never, wait=wait_fixed(1e15)),
        Retry(wait=wait_fixed(float("nan"))),
    ],
    ids=["retry", "stop", "wait", "wait too long", "wait not a number"],
)
async def test_policy_that_fails_is_replaced_by_the_default_one(
    transport: FakeTransport, retry: Retry, caplog: pytest.LogCaptureFixture
) -> None:
    ending = await plan(make_execution(transport), failed(ValueError("no")), retry)
    assert isinstance(ending.outcome, Released)
    assert ending.verdict == Nak(ending.outcome.delay)
    assert timedelta(seconds=1) <= ending.outcome.delay <= timedelta(seconds=2)
    assert "retry policy" in caplog.text
    assert "'shout'" in caplog.text
    last = await plan(make_execution(transport, attempt=5), failed(ValueError("no")), retry)
    assert last.dead_letter


async def test_policy_that_fails_does_not_make_a_managed_failure_hopeless(
    transport: FakeTransport,
) -> None:
    execution = make_execution(transport, workflow_name="hello")
    failure = failed(ValueError("no"))
    ending = await plan(execution, failure, Retry(retry=retry_if_exception(broken)))
    assert ending == Plan(Failed("no", "retriable"), ACKED)


# Outputs that the server would refuse


@pytest.mark.parametrize("kind", [Completed, Continued])
async def test_output_that_is_too_large_is_a_failure_that_names_the_sizes(
    kind: type[Completed | Continued],
) -> None:
    execution = make_execution(FakeTransport(max_payload=10_000), workflow_name="hello")
    ending = await plan(execution, kind(b"1" * 10_001), RETRY)
    assert ending.verdict == ACKED
    assert isinstance(ending.outcome, Failed)
    assert ending.outcome.failure_type == "non_retriable"
    for part in ("10001", "10000", "max_payload", str(ENVELOPE_BYTES_MAX), "reference"):
        assert part in ending.outcome.error


async def test_output_that_is_too_large_leaves_a_dead_letter_where_there_is_no_engine() -> None:
    execution = make_execution(FakeTransport(max_payload=10_000))
    assert (await plan(execution, Completed(b"1" * 10_000), RETRY)).dead_letter


@pytest.mark.parametrize("trace", [{}, {"traceparent": "p" * 55, "tracestate": "s" * 400}])
async def test_output_that_just_fits_with_its_event_is_published(trace: dict[str, str]) -> None:
    room = 20_000 - ENVELOPE_BYTES_MAX - 2 * sum(map(len, trace.values()))
    execution = make_execution(FakeTransport(max_payload=20_000), headers=trace)
    fitting = Completed(b"1" * room)
    assert await plan(execution, fitting, RETRY) == Plan(fitting, ACKED)
    larger = await plan(execution, Completed(b"1" * (room + 1)), RETRY)
    assert isinstance(larger.outcome, Failed)
