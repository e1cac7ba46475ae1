"""Which failure an exception is. Method: exceptions in, values out; nothing is fake."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker import (
    Completed,
    Continued,
    Failed,
    NonRetryableError,
    Outcome,
    Paused,
    Released,
    RetryAfterError,
    UsageError,
)
from dagnats_worker._outcome import CAUSES_MAX, FailureType, causes, failed, is_outcome
from dagnats_worker.errors import (
    CapabilityMissingError,
    DecodeError,
    PluginError,
    SignalTimeoutError,
    TaskError,
    TransportError,
)

SOON = timedelta(seconds=3)


def chain(*errors: BaseException) -> BaseException:
    """The first of them, each one raised from the next."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this error cannot be shown")


# What an exception is


@pytest.mark.parametrize(
    ("error", "text", "failure_type"),
    [
        (ValueError("no luck"), "no luck", "retriable"),
        (TaskError("on purpose"), "on purpose", "retriable"),
        (NonRetryableError("never"), "never", "non_retriable"),
        (UsageError("wrong call"), "wrong call", "non_retriable"),
        (CapabilityMissingError("install it"), "install it", "non_retriable"),
        (TransportError("no server"), "no server", "retriable"),
        (SignalTimeoutError("too late"), "too late", "retriable"),
        (DecodeError("not JSON"), "not JSON", "retriable"),
        (PluginError("a plugin"), "a plugin", "retriable"),
        (TimeoutError(), "TimeoutError", "retriable"),
        (ValueError(""), "ValueError", "retriable"),
        (KeyError("key"), "'key'", "retriable"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "retriable"),
        (MuteError(), "MuteError", "retriable"),
        (
            ExceptionGroup("two", [ValueError(), ValueError()]),
            "two (2 sub-exceptions)",
            "retriable",
        ),
    ],
)
def test_exception_is_classified_and_kept(
    error: BaseException, text: str, failure_type: FailureType
) -> None:
    failure = failed(error)
    assert failure == Failed(text, failure_type)
    assert failure.exception is error


def test_retry_after_keeps_its_delay() -> None:
    error = RetryAfterError("busy", SOON)
    assert failed(error) == Failed("busy", "retry_after", SOON)
    assert failed(error).exception is error


@pytest.mark.parametrize("depth", [1, 2, CAUSES_MAX - 1])
def test_non_retryable_is_found_under_what_was_wrapped_around_it(depth: int) -> None:
    inner = NonRetryableError("the card was refused")
    error = chain(*[RuntimeError(f"wrapped {level}") for level in range(depth)], inner)
    assert failed(error) == Failed("the card was refused", "non_retriable")
    assert failed(error).exception is error


def test_retry_after_is_found_under_what_was_wrapped_around_it() -> None:
    error = chain(RuntimeError("outer"), ValueError("middle"), RetryAfterError("busy", SOON))
    assert failed(error) == Failed("busy", "retry_after", SOON)


@pytest.mark.parametrize("outermost", [True, False])
def test_retry_after_is_stronger_than_non_retryable_wherever_it_is(*, outermost: bool) -> None:
    errors = [RetryAfterError("busy", SOON), NonRetryableError("never")]
    error = chain(*(errors if outermost else reversed(errors)))
    assert failed(error) == Failed("busy", "retry_after", SOON)


def test_outermost_of_two_of_a_kind_gives_the_text() -> None:
    error = chain(ValueError("wrapped"), NonRetryableError("outer"), NonRetryableError("inner"))
    assert failed(error).error == "outer"


def test_what_a_task_error_was_made_from_is_its_cause() -> None:
    assert failed(NonRetryableError(KeyError("name"))) == Failed("'name'", "non_retriable")
    assert failed(NonRetryableError(RetryAfterError("busy", SOON))).failure_type == "retry_after"


def test_exception_that_was_handled_meanwhile_is_no_cause() -> None:
    def raise_it() -> None:
        try:
            raise NonRetryableError("handled")
        except NonRetryableError:
            raise ValueError("a bug in the handling") from None

    with pytest.raises(ValueError, match="a bug") as caught:
        raise_it()
    assert isinstance(caught.value.__context__, NonRetryableError)
    assert failed(caught.value) == Failed("a bug in the handling", "retriable")


@pytest.mark.parametrize("error_type", [UsageError, CapabilityMissingError])
def test_programmers_error_that_somebody_has_wrapped_is_retriable(
    error_type: type[Exception],
) -> None:
    assert failed(chain(ValueError("outer"), error_type("inner"))) == Failed("outer", "retriable")


# Rings


@pytest.mark.parametrize("length", [1, 2, 5])
def test_ring_of_causes_ends(length: int) -> None:
    errors = [ValueError(f"number {index}") for index in range(length)]
    chain(*errors, errors[0])
    assert len(list(causes(errors[0]))) == CAUSES_MAX
    assert failed(errors[0]) == Failed("number 0", "retriable")


def test_chain_that_is_longer_than_the_bound_is_cut() -> None:
    error = chain(*[ValueError() for _ in range(CAUSES_MAX)], NonRetryableError("too deep"))
    assert failed(error).failure_type == "retriable"


@given(st.lists(st.sampled_from(["value", "never", "later"]), min_size=1, max_size=12))
def test_type_of_a_chain_is_the_strongest_of_its_links(kinds: list[str]) -> None:
    made: dict[str, Any] = {
        "value": lambda: ValueError("value"),
        "never": lambda: NonRetryableError("never"),
        "later": lambda: RetryAfterError("later", SOON),
    }
    failure = failed(chain(*[made[kind]() for kind in kinds]))
    if "later" in kinds:
        assert failure == Failed("later", "retry_after", SOON)
    elif "never" in kinds:
        assert failure == Failed("never", "non_retriable")
    else:
        assert failure == Failed("value", "retriable")


# Outcomes as values


OUTCOMES: list[Outcome] = [
    Completed(b"1"),
    Continued(),
    Failed("no", "retriable"),
    Paused("later", SOON),
    Released("drain"),
]


def test_every_member_of_the_union_is_an_outcome() -> None:
    assert {type(outcome) for outcome in OUTCOMES} == set(get_args(Outcome))
    assert all(map(is_outcome, OUTCOMES))


@pytest.mark.parametrize("value", [None, True, "completed", Completed, ValueError(), Ellipsis])
def test_anything_else_is_none(value: object) -> None:
    assert not is_outcome(value)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_outcome_is_frozen(outcome: Any) -> None:
    name = dataclasses.fields(outcome)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(outcome, name, "other")


def test_exception_of_a_failure_is_neither_compared_nor_shown() -> None:
    failure = Failed("no", "retriable", exception=ValueError("secret"))
    assert failure == Failed("no", "retriable")
    assert "secret" not in repr(failure)
