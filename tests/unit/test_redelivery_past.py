"""What the history says of a task that was delivered before.

Method: sequences of events, written by hand as JSON, are read; hypothesis makes any sequence, and a
second, slower reading says what is to come out. Nothing is fake.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker import Failed
from dagnats_worker._redelivery import FREE_REASONS, Past, read_past
from dagnats_worker._transport import StoredEvent

STEP = "step.one"
OTHER_STEP = "step"

Entry = tuple[str, str, str]
"""Event type, step, and the reason of a release."""


def event(kind: str, step: str = STEP, reason: str = "") -> bytes:
    body: dict[str, Any] = {"type": kind, "run_id": "run-1", "step_id": step}
    if reason:
        body["payload"] = {"reason": reason, "delay_ms": 5}
    return json.dumps(body).encode()


def read(*events: bytes, first: int = 10) -> Past:
    stored = [StoredEvent(first + index, data, "") for index, data in enumerate(events)]
    return read_past(stored, STEP)


STARTED = event("step.started")
COMPLETED = event("step.completed")
CONTINUED = event("step.continue")


def released(reason: str) -> bytes:
    return event("step.released", reason=reason)


def failure(**payload: Any) -> bytes:
    body = {"type": "step.failed", "run_id": "run-1", "step_id": STEP, "payload": payload}
    return json.dumps(body).encode()


# One by one


def test_no_events_are_a_first_attempt() -> None:
    assert read() == Past()
    assert read().attempt == 1


def test_start_that_nothing_follows_is_a_crash() -> None:
    past = read(STARTED, STARTED)
    assert (past.outcome, past.crashes, past.starts, past.attempt) == (None, 2, 2, 3)


@pytest.mark.parametrize("reason", ["pause", "delay", "drain"])
def test_start_that_was_given_back_on_purpose_is_neither_crash_nor_attempt(reason: str) -> None:
    past = read(STARTED, released(reason))
    assert (past.crashes, past.attempt) == (0, 1)


def test_retry_is_an_attempt_and_no_crash() -> None:
    past = read(STARTED, released("retry"))
    assert (past.crashes, past.attempt) == (0, 2)


@pytest.mark.parametrize(
    "payload", [None, {}, {"reason": "bored"}, {"reason": 7}, "drain", ["drain"]]
)
def test_release_for_an_unknown_reason_is_an_attempt_and_no_crash(payload: object) -> None:
    body = {"type": "step.released", "run_id": "run-1", "step_id": STEP}
    if payload is not None:
        body["payload"] = payload  # type: ignore[assignment]  # what only a stranger writes
    past = read(STARTED, json.dumps(body).encode())
    assert (past.crashes, past.attempt) == (0, 2)


def test_release_with_a_delay_rests_until_then_or_until_the_next_start() -> None:
    body = {"type": "step.released", "run_id": "run-1", "step_id": STEP}
    body["timestamp"] = "1970-01-01T00:00:10.5Z"
    body["payload"] = {"reason": "pause", "delay_ms": 2000}  # type: ignore[assignment]  # any JSON
    resting = json.dumps(body).encode()
    assert read(STARTED, resting).rests_until_ns == 12_500_000_000
    assert read(STARTED, resting, STARTED).rests_until_ns == 0
    assert read(STARTED, released("pause")).rests_until_ns == 0, "it does not say when that was"


def test_crashes_are_counted_anew_after_something_was_heard() -> None:
    assert read(STARTED, STARTED, released("retry"), STARTED).crashes == 1


@pytest.mark.parametrize("kind", ["step.completed", "step.continue", "step.failed"])
def test_outcome_ends_the_dispatch(kind: str) -> None:
    past = read(STARTED, STARTED, event(kind))
    assert (past.outcome, past.crashes, past.started_again) == (kind, 0, False)


def test_failure_says_what_it_was() -> None:
    past = read(STARTED, failure(error="no luck", failure_type="non_retriable"))
    assert past.failure == Failed("no luck", "non_retriable")


def test_failure_that_says_nothing_is_retriable() -> None:
    assert read(STARTED, event("step.failed")).failure.failure_type == "retriable"


def test_what_follows_the_outcome_belongs_to_the_next_turn_of_a_loop() -> None:
    past = read(STARTED, CONTINUED, STARTED, failure(error="later", failure_type="non_retriable"))
    assert (past.outcome, past.started_again) == ("step.continue", True)
    assert past.failure == Past().failure
    assert (past.starts, past.crashes) == (1, 0)


def test_other_steps_are_other_stories() -> None:
    past = read(event("step.started", OTHER_STEP), event("step.completed", OTHER_STEP))
    assert (past.outcome, past.starts, past.last_sequence) == (None, 0, 11)


@pytest.mark.parametrize("step", [STEP, OTHER_STEP, ""])
def test_cancel_counts_whatever_step_it_names(step: str) -> None:
    assert read(STARTED, event("workflow.cancelled", step)).cancelled


def test_what_cannot_be_read_is_passed_over_but_is_still_the_newest() -> None:
    past = read(STARTED, b"\xff", b"{}", b"[]", b'{"type":7}')
    assert (past.starts, past.last_sequence) == (1, 14)


def test_starts_of_the_engine_and_of_the_bridge_are_starts_too() -> None:
    body = json.loads(STARTED) | {"worker_id": "worker-go", "attempt_number": 4}
    assert read(json.dumps(body).encode()).starts == 1


# Any sequence

TYPES = [
    "step.queued",
    "step.started",
    "step.completed",
    "step.failed",
    "step.continue",
    "step.released",
    "workflow.started",
    "workflow.cancelled",
    "something.else",
]
REASONS = ["", "pause", "delay", "drain", "retry", "bored"]

entries = st.tuples(
    st.sampled_from([*TYPES, "step.started", "step.released"]),
    st.sampled_from([STEP, STEP, STEP, OTHER_STEP]),
    st.sampled_from(REASONS),
)


def read_slowly(entries: list[Entry], first: int) -> Past:
    """The same by looking at the whole sequence again for each question."""
    own = [(kind, reason) for kind, step, reason in entries if step == STEP]
    ends = [
        index
        for index, (kind, _) in enumerate(own)
        if kind in ("step.completed", "step.failed", "step.continue")
    ]
    end = ends[0] if ends else len(own)
    before, after = own[:end], own[end + 1 :]
    releases = [index for index, (kind, _) in enumerate(before) if kind == "step.released"]
    silent = before[releases[-1] + 1 :] if releases else before
    return Past(
        outcome=own[end][0] if ends else None,
        failure=Failed("unknown error", "retriable")
        if ends and own[end][0] == "step.failed"
        else Past().failure,
        started_again=("step.started" in [kind for kind, _ in after]),
        cancelled=any(kind == "workflow.cancelled" for kind, _, _ in entries),
        starts=sum(kind == "step.started" for kind, _ in before),
        free_starts=sum(
            kind == "step.released" and reason in ("pause", "delay", "drain")
            for kind, reason in before
        ),
        crashes=0 if ends else sum(kind == "step.started" for kind, _ in silent),
        last_sequence=first + len(entries) - 1 if entries else 0,
    )


def written(kind: str, step: str, reason: str) -> bytes:
    return event(kind, step, reason if kind == "step.released" else "")


@given(st.lists(entries, max_size=20), st.integers(1, 2**40))
def test_any_sequence_is_read_as_it_is_meant(entries: list[Entry], first: int) -> None:
    past = read(*(written(*entry) for entry in entries), first=first)
    assert past == read_slowly(entries, first)


@given(st.lists(st.sampled_from(["crash", "retry", *sorted(FREE_REASONS)]), max_size=15))
def test_attempt_is_one_more_than_what_was_used_up(starts: list[str]) -> None:
    events: list[bytes] = []
    for how in starts:
        events += [STARTED] if how == "crash" else [STARTED, released(how)]
    used_up = sum(how in ("crash", "retry") for how in starts)
    assert read(*events).attempt == used_up + 1


@given(st.lists(entries, max_size=12), st.lists(entries, max_size=8))
def test_outcome_that_is_there_is_never_changed_by_what_comes_later(
    before: list[Entry], later: list[Entry]
) -> None:
    events = [written(*entry) for entry in before]
    first = read(*events, COMPLETED)
    again = read(*events, COMPLETED, *(written(*entry) for entry in later))
    assert again.outcome == first.outcome
    assert again.failure == first.failure
    assert (again.starts, again.free_starts, again.crashes) == (first.starts, first.free_starts, 0)
