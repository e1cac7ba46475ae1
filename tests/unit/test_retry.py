"""Retry policies in tenacity's vocabulary, over durable redeliveries and over our own NATS calls.

Method: tenacity's own strategies are asked through ``Retry`` and compared with what tenacity
promises; calls of NATS are coroutines that fail as often as they are told. Fake: the pauses between
two of those calls, which are noted instead of slept.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    RetryCallState,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_never,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
)

from dagnats_worker import Failed, Retry
from dagnats_worker._outcome import failed
from dagnats_worker._retry import TASK_ATTEMPTS_DEFAULT, retry_nats
from dagnats_worker.errors import (
    ConnectError,
    KeyValueError,
    PublishError,
    TaskError,
    TransportError,
)

FAILURE = failed(ValueError("no"))


def delay_s(retry: Retry, *, attempt: int = 1, since_first_s: float = 0.0) -> float | None:
    delay = retry.next_delay(FAILURE, attempt=attempt, since_first_s=since_first_s)
    return None if delay is None else delay.total_seconds()


def delays_s(retry: Retry, attempts: int) -> list[float | None]:
    return [delay_s(retry, attempt=attempt) for attempt in range(1, attempts + 1)]


# When to stop


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_counted_from_one(attempts: int) -> None:
    retry = Retry(stop=stop_after_attempt(attempts), wait=wait_fixed(1))
    assert delays_s(retry, attempts) == [1.0] * (attempts - 1) + [None]
    assert delay_s(retry, attempt=attempts + 1) is None


def test_policy_that_never_stops_goes_on() -> None:
    assert delay_s(Retry(stop=stop_never, wait=wait_fixed(1)), attempt=10_000) == 1.0


@pytest.mark.parametrize(("since_s", "delay"), [(0, 1.0), (59, 1.0), (60, None), (3600, None)])
def test_time_since_the_first_attempt_can_stop(since_s: float, delay: float | None) -> None:
    retry = Retry(stop=stop_after_delay(60), wait=wait_fixed(1))
    assert delay_s(retry, since_first_s=since_s) == delay


def test_pause_that_would_pass_the_limit_is_known_to_the_policy() -> None:
    retry = Retry(stop=stop_before_delay(60), wait=wait_fixed(20))
    assert delay_s(retry, since_first_s=30) == 20
    assert delay_s(retry, since_first_s=50) is None


def test_delay_of_the_handler_is_the_pause_that_the_policy_knows() -> None:
    retry = Retry(stop=stop_before_delay(60), wait=wait_fixed(0))
    busy = Failed("busy", "retry_after", timedelta(seconds=100))
    assert retry.next_delay(busy, attempt=1, since_first_s=0) is None
    shorter = Failed("busy", "retry_after", timedelta(seconds=10))
    assert retry.next_delay(shorter, attempt=1, since_first_s=0) == timedelta(seconds=10)


def test_stops_can_be_joined() -> None:
    either = Retry(stop=stop_after_attempt(3) | stop_after_delay(60), wait=wait_fixed(1))
    assert delay_s(either, attempt=2) == 1.0
    assert delay_s(either, attempt=3) is None
    assert delay_s(either, attempt=1, since_first_s=61) is None
    both = Retry(stop=stop_after_attempt(3) & stop_after_delay(60), wait=wait_fixed(1))
    assert delay_s(both, attempt=3) == 1.0
    assert delay_s(both, attempt=3, since_first_s=61) is None


# How long to wait


def test_waits_are_those_of_tenacity() -> None:
    chain = wait_chain(wait_fixed(1), wait_fixed(5), wait_fixed(9))
    rising = wait_incrementing(start=2, increment=3)
    doubling = wait_exponential(multiplier=1, max=10)
    assert delays_s(Retry(stop=stop_never, wait=chain), 4) == [1, 5, 9, 9]
    assert delays_s(Retry(stop=stop_never, wait=rising), 3) == [2, 5, 8]
    assert delays_s(Retry(stop=stop_never, wait=doubling), 5) == [1, 2, 4, 8, 10]


@given(st.integers(1, 1000))
def test_exponential_wait_with_jitter_stays_within_its_bounds(attempt: int) -> None:
    wait = wait_exponential_jitter(initial=1, max=60, jitter=1)
    delay = delay_s(Retry(stop=stop_never, wait=wait), attempt=attempt)
    assert delay is not None
    lowest = min(2.0 ** min(attempt - 1, 10), 60)
    assert lowest <= delay <= min(lowest + 1, 60)


def test_waits_can_be_added() -> None:
    retry = Retry(stop=stop_never, wait=wait_fixed(3) + wait_random(0, 1))
    delay = delay_s(retry)
    assert delay is not None
    assert 3 <= delay <= 4


def test_handler_that_names_a_delay_gets_that_one() -> None:
    retry = Retry(stop=stop_after_attempt(3), wait=wait_fixed(1))
    busy = Failed("busy", "retry_after", timedelta(minutes=2))
    assert retry.next_delay(busy, attempt=1, since_first_s=0) == timedelta(minutes=2)
    assert retry.next_delay(busy, attempt=3, since_first_s=0) is None


def test_handler_that_names_no_delay_at_all_gets_none() -> None:
    retry = Retry(wait=wait_fixed(9))
    busy = Failed("busy", "retry_after", timedelta(0))
    assert retry.next_delay(busy, attempt=1, since_first_s=0) == timedelta(0)


# What can be retried


@pytest.mark.parametrize(
    ("policy", "error", "retriable"),
    [
        (retry_if_exception_type(OSError), ConnectionResetError(), True),
        (retry_if_exception_type(OSError), ValueError(), False),
        (retry_if_not_exception_type(OSError), ValueError(), True),
        (retry_if_exception_message(match="no .*"), ValueError("no luck"), True),
        (retry_if_exception_message(match="no .*"), ValueError("luck"), False),
        (retry_if_exception_type(OSError) | retry_if_exception_type(KeyError), KeyError(), True),
        (retry_if_exception_type(OSError) & retry_if_exception_type(KeyError), KeyError(), False),
        (retry_never, ValueError(), False),
    ],
)
def test_predicates_are_those_of_tenacity(
    policy: Any, error: Exception, *, retriable: bool
) -> None:
    assert Retry(retry=policy).retriable(failed(error)) is retriable


def test_predicate_is_shown_what_the_handler_raised_with_its_causes() -> None:
    seen: list[BaseException] = []

    def look(error: BaseException) -> bool:
        seen.append(error)
        return True

    outer, inner = ValueError("outer"), KeyError("inner")
    outer.__cause__ = inner
    Retry(retry=tenacity.retry_if_exception(look)).retriable(failed(outer))
    assert seen == [outer]
    by_cause = Retry(retry=tenacity.retry_if_exception_cause_type(KeyError))
    assert by_cause.retriable(failed(outer))


def test_failure_without_an_exception_is_a_task_error_to_the_policy() -> None:
    recorded = Failed("recorded", "retriable")
    assert Retry(retry=retry_if_exception_type(TaskError)).retriable(recorded)
    assert not Retry(retry=retry_if_exception_type(ValueError)).retriable(recorded)
    assert Retry(retry=retry_if_exception_message("recorded")).retriable(recorded)


def test_every_strategy_sees_the_attempt_and_the_failure() -> None:
    seen: list[tuple[str, int, bool]] = []

    def note(name: str, *, answer: Any) -> Any:
        def strategy(state: RetryCallState) -> Any:
            assert state.outcome is not None
            seen.append((name, state.attempt_number, state.outcome.failed))
            return answer

        return strategy

    retry = Retry(
        stop=note("stop", answer=False), wait=note("wait", answer=4), retry=note("retry", answer=1)
    )
    assert retry.retriable(FAILURE)
    assert delay_s(retry, attempt=7) == 4.0
    assert seen == [("retry", 1, True), ("wait", 7, True), ("stop", 7, True)]


def test_default_is_five_attempts_with_an_exponential_wait() -> None:
    retry = Retry()
    delays = delays_s(retry, TASK_ATTEMPTS_DEFAULT)
    assert delays[-1] is None
    for attempt, delay in enumerate(delays[:-1]):
        assert delay is not None
        assert 2**attempt <= delay <= 2**attempt + 1
    assert retry.retriable(failed(KeyboardInterrupt()))


@pytest.mark.parametrize("name", ["stop", "wait", "retry"])
@pytest.mark.parametrize("strategy", [3, None, "never", wait_none, stop_after_attempt])
def test_what_is_no_strategy_is_refused(name: str, strategy: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is a strategy of tenacity such as stop_after_at"):
        Retry(**{name: strategy})


@pytest.mark.parametrize("name", ["stop", "wait", "retry"])
def test_strategy_that_would_have_to_be_awaited_is_refused(name: str) -> None:
    async def strategy(_: RetryCallState) -> bool:
        return True

    async def predicate(_: BaseException) -> bool:
        return True

    for one in (strategy, tenacity.asyncio.retry_if_exception(predicate)):
        with pytest.raises(TypeError, match=f"{name} is async"):
            Retry(**{name: one})  # type: ignore[arg-type]  # what is tried here


# Our own calls of NATS


class Call:
    """Fails with each of these errors in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "stored"


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which nobody waits for."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept


@pytest.mark.parametrize(
    "error",
    [
        TransportError("no answer"),
        ConnectError("no server"),
        KeyValueError("no answer"),
        PublishError("no answer"),
        PublishError("no leader", 10008),
        PublishError("store is full for now", 10077),
    ],
)
async def test_what_nats_failed_to_do_is_tried_again(
    error: Exception, slept_s: list[float]
) -> None:
    call = Call(error, error)
    repeated: list[int] = []
    answer = await retry_nats(call, attempts=3, before=lambda: repeated.append(call.calls))
    assert answer == "stored"
    assert call.calls == 3
    assert repeated == [1, 2]
    assert len(slept_s) == 2


@pytest.mark.parametrize(
    "error",
    [
        PublishError("wrong last sequence", 10071),
        PublishError("message too large", 10054),
        ValueError("a bug"),
        asyncio.CancelledError(),
    ],
)
async def test_what_was_refused_for_a_reason_stays_refused(
    error: Exception, slept_s: list[float]
) -> None:
    call = Call(error)
    with pytest.raises(type(error)) as caught:
        await retry_nats(call, attempts=3)
    assert caught.value is error
    assert call.calls == 1
    assert slept_s == []


async def test_last_error_is_raised_as_it_is(slept_s: list[float]) -> None:
    errors = [PublishError(f"no answer {number}") for number in range(3)]
    call = Call(*errors)
    with pytest.raises(PublishError, match="no answer 2") as caught:
        await retry_nats(call, attempts=3)
    assert caught.value is errors[-1]
    assert call.calls == 3
    assert len(slept_s) == 2


async def test_pauses_grow_and_are_bounded(slept_s: list[float]) -> None:
    with pytest.raises(TransportError):
        await retry_nats(Call(*[TransportError("gone")] * 10), attempts=10)
    assert slept_s[0] < slept_s[3] < slept_s[-1] <= 2.1
