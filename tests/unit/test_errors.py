"""The exceptions themselves: the tree that is drawn, what they carry, what they refuse.

Method: exceptions are made, copied and pickled; the tree is read from the module's docstring. What
they do to a message is in contract/test_errors_mapping.py. Nothing is fake.
"""

from __future__ import annotations

import copy
import pickle
import re
from datetime import timedelta
from typing import Any

import pytest

from dagnats_worker import Completed, errors
from dagnats_worker.errors import (
    DagnatsError,
    DelayTask,
    EndTask,
    KeyValueError,
    NonRetryableError,
    PublishError,
    ReleaseTask,
    RetryAfterError,
    RunCancelledError,
    SignalTimeoutError,
    SkipTask,
    TaskError,
    TaskFailedError,
    TransportError,
    UsageError,
    describe,
)

SOON = timedelta(seconds=3)


# The tree

LINE = re.compile(
    r"^    (?P<branches>[│├└─ ]*)(?P<name>[A-Z]\w+(?:, [A-Z]\w+)*)(?:\(\w+\))?(?:\s|$)"
)


def drawn_tree() -> dict[str, str]:
    """Each exception with the one above it, as the docstring draws them."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth, name = len(match["branches"]), match["name"]
        while path and path[-1][0] >= depth:
            path.pop()
        parents[name] = path[-1][1] if path else ""
        path.append((depth, name))
    return parents


def test_tree_that_is_drawn_is_the_tree() -> None:
    tree = drawn_tree()
    assert tree.pop("DagnatsError") == ""
    for name, parent in tree.items():
        assert getattr(errors, name).__bases__[0] is getattr(errors, parent), name


def test_every_exception_is_drawn_and_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == set(drawn_tree()) == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_exception_says_what_it_is_for(name: str) -> None:
    exception = getattr(errors, name)
    assert issubclass(exception, DagnatsError)
    assert (exception.__doc__ or "").strip()


# Errors that handlers raise


@pytest.mark.parametrize("kind", [TaskError, NonRetryableError])
def test_task_error_is_made_from_a_text(kind: type[TaskError]) -> None:
    error = kind("no luck")
    assert str(error) == "no luck"
    assert error.__cause__ is None


@pytest.mark.parametrize("kind", [TaskError, NonRetryableError])
def test_task_error_is_made_from_an_exception(kind: type[TaskError]) -> None:
    cause = KeyError("name")
    error = kind(cause)
    assert str(error) == "'name'"
    assert error.__cause__ is cause


def test_exception_without_a_text_is_told_by_its_class() -> None:
    assert str(NonRetryableError(TimeoutError())) == "TimeoutError"


@pytest.mark.parametrize("value", [None, 7, b"bytes", ValueError])
def test_anything_else_is_refused_at_the_call(value: Any) -> None:
    with pytest.raises(TypeError, match="NonRetryableError takes an exception or a text, got"):
        NonRetryableError(value)
    with pytest.raises(TypeError, match="RetryAfterError takes an exception or a text, got"):
        RetryAfterError(value, SOON)


def test_retry_after_has_a_delay() -> None:
    error = RetryAfterError(ValueError("busy"), SOON)
    assert (str(error), error.delay) == ("busy", SOON)


@pytest.mark.parametrize("delay", [3, None, "3s"])
def test_delay_is_a_timedelta(delay: Any) -> None:
    with pytest.raises(TypeError, match=f"delay is a timedelta, got {delay!r}"):
        RetryAfterError("busy", delay)
    with pytest.raises(ValueError, match="delay is a timedelta of zero or more, got"):
        DelayTask(delay)


def test_task_is_not_delayed_into_the_past() -> None:
    assert DelayTask(timedelta(0)).delay == timedelta(0)
    with pytest.raises(ValueError, match="zero or more"):
        DelayTask(timedelta(seconds=-1))


# What the others carry


def test_control_flow_carries_what_it_asks_for() -> None:
    outcome = Completed(b"1")
    assert EndTask(outcome).outcome is outcome
    assert ReleaseTask(outcome).outcome is outcome
    assert DelayTask(SOON).delay == SOON
    assert SkipTask("done elsewhere").reason == "done elsewhere"
    for error in (EndTask(outcome), ReleaseTask(outcome), DelayTask(SOON), SkipTask("reason")):
        assert not isinstance(error, TaskError)
        assert str(error)


@pytest.mark.parametrize("kind", [EndTask, ReleaseTask])
@pytest.mark.parametrize("value", [None, "done", 7, Completed, ValueError()])
def test_task_is_ended_with_an_outcome_and_nothing_else(kind: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__} takes an outcome such as Completed\("):
        kind(value)


def test_errors_of_nats_say_what_can_be_done_about_them() -> None:
    assert PublishError("no answer").code == 0
    assert PublishError("refused", 10071).code == 10071
    assert not KeyValueError("no bucket").conflict
    assert KeyValueError("another revision", conflict=True).conflict
    assert issubclass(PublishError, TransportError)
    assert issubclass(KeyValueError, TransportError)


def test_signal_that_does_not_come_is_a_timeout_to_everybody() -> None:
    assert issubclass(SignalTimeoutError, TimeoutError)


def test_errors_of_a_run_name_it() -> None:
    failed = TaskFailedError("no", run_id="r", step_id="s", failure_type="non_retriable")
    assert (failed.run_id, failed.step_id, failed.failure_type) == ("r", "s", "non_retriable")
    assert str(RunCancelledError("r")) == "run r was cancelled"


ATTRIBUTES = ("delay", "outcome", "reason", "code", "conflict", "run_id", "step_id", "failure_type")


@pytest.mark.parametrize(
    "error",
    [
        NonRetryableError("never"),
        RetryAfterError("busy", SOON),
        EndTask(Completed(b"1")),
        ReleaseTask(Completed(b"1")),
        DelayTask(SOON),
        SkipTask("reason"),
        PublishError("refused", 10071),
        KeyValueError("another revision", conflict=True),
        UsageError("wrong"),
        TaskFailedError("no", run_id="r", step_id="s", failure_type="retriable"),
        RunCancelledError("r"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exception_survives_copy_and_pickle(error: DagnatsError) -> None:
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - our own
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        for name in ATTRIBUTES:
            assert getattr(copied, name, None) == getattr(error, name, None)


# Texts of exceptions


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this error cannot be shown")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "no"),
        (ValueError(), "ValueError"),
        (MuteError(), "MuteError"),
        (SystemExit(3), "3"),
        (ValueError("two", "arguments"), "('two', 'arguments')"),
    ],
)
def test_exception_is_described_whatever_it_is(error: BaseException, text: str) -> None:
    assert describe(error) == text
