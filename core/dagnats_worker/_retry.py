"""Retry policies in tenacity's vocabulary: of tasks, over redeliveries, and of our NATS calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_exponential_jitter,
    wait_random,
)
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from dagnats_worker._outcome import Failed
from dagnats_worker.errors import PublishError, TaskError, TransportError

T = TypeVar("T")

TASK_ATTEMPTS_DEFAULT = 5
TASK_WAIT_FIRST_S = 1.0
TASK_WAIT_MAX_S = 60.0
NATS_WAIT_FIRST_S = 0.1
NATS_WAIT_MAX_S = 2.0
NATS_JITTER_S = 0.1

_no_call = Retrying()


@dataclass(frozen=True, slots=True)
class Retry:
    """When a task of a run without an engine is tried again, and after how long.

    The strategies are tenacity's; they are asked once per failed attempt, and what they would sleep
    is the delay until the message is delivered again. ``retry`` also tells whether a failure can be
    retried at all, which an engine is told too.

    Attributes:
        stop: Five attempts by default.
        wait: Exponential with jitter, from one second to a minute, by default.
        retry: Every exception by default.
    """

    stop: stop_base = field(default_factory=lambda: stop_after_attempt(TASK_ATTEMPTS_DEFAULT))
    wait: wait_base = field(
        default_factory=lambda: wait_exponential_jitter(
            initial=TASK_WAIT_FIRST_S, max=TASK_WAIT_MAX_S
        )
    )
    retry: retry_base = field(default_factory=lambda: retry_if_exception_type(BaseException))

    def __post_init__(self) -> None:
        for name in ("stop", "wait", "retry"):
            _check_strategy(name, getattr(self, name))

    def retriable(self, failure: Failed) -> bool:
        """Whether a retry can help, says the policy."""
        return bool(self.retry(_state(failure, attempt=1, since_first_s=0.0)))

    def next_delay(
        self, failure: Failed, *, attempt: int, since_first_s: float
    ) -> timedelta | None:
        """How long to wait before the next attempt; None when the attempts are used up.

        Args:
            attempt: The one that failed, 1 for the first.
            since_first_s: Since the task was submitted.
        """
        state = _state(failure, attempt=attempt, since_first_s=since_first_s)
        delay = failure.retry_after
        if delay is None:
            delay = timedelta(seconds=float(self.wait(state)))
        state.upcoming_sleep = delay.total_seconds()
        return None if self.stop(state) else delay


def _check_strategy(name: str, strategy: object) -> None:
    if not callable(strategy) or isinstance(strategy, type):
        raise TypeError(
            f"{name} is a strategy of tenacity such as stop_after_attempt(3), wait_fixed(1) or "
            f"retry_if_exception_type(OSError), got {strategy!r}"
        )
    if iscoroutinefunction(strategy) or iscoroutinefunction(type(strategy).__call__):
        raise TypeError(f"{name} is async, and nobody waits for its answer; got {strategy!r}")


def _state(failure: Failed, *, attempt: int, since_first_s: float) -> RetryCallState:
    state = RetryCallState(_no_call, None, (), {})
    error = failure.exception or TaskError(failure.error)
    state.set_exception((type(error), error, error.__traceback__))
    state.attempt_number = attempt
    if state.outcome_timestamp is not None:
        state.start_time = state.outcome_timestamp - since_first_s
    return state


def _is_transient(error: BaseException) -> bool:
    """No answer, or a server that is busy electing; what it refused for a reason stays refused."""
    if isinstance(error, PublishError):
        return error.code == 0 or error.code in _TRANSIENT_CODES
    return isinstance(error, TransportError)


_TRANSIENT_CODES = frozenset({10008, 10009, 10013, 10077, 10118})
"""JetStream not available for now: no quorum, no leader, a store that is full for the moment."""


async def retry_nats(
    call: Callable[[], Awaitable[T]], *, attempts: int, before: Callable[[], None] | None = None
) -> T:
    """Call again what NATS failed to do; the last error is raised as it is.

    Args:
        before: Called before each repetition, to count it.
    """

    def count(_: RetryCallState) -> None:
        if before is not None:
            before()

    retrying = AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(NATS_WAIT_FIRST_S, NATS_WAIT_MAX_S) + wait_random(0, NATS_JITTER_S),
        retry=retry_if_exception(_is_transient),
        before_sleep=count,
        reraise=True,
    )
    return await retrying(call)
