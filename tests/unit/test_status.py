"""The state of a run, from the engine's snapshot and from a history without an engine.

Method: snapshots as the engine writes them, byte for byte; events as a client sees them. Nothing is
fake.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker import RunEvent, RunStatus, StepStatus
from dagnats_worker._status import status_from_events, status_from_snapshot
from dagnats_worker.errors import DecodeError

VECTORS = Path(__file__).parents[1] / "vectors"
WIRE = {one["name"]: one["wire"] for one in json.loads((VECTORS / "wire.json").read_text("utf-8"))}
RUN = "9f86d081884c7d659a2feaa0c55ad015"


def snapshot(**fields: Any) -> bytes:
    return json.dumps(
        {"run_id": RUN, "workflow_id": "hello", "status": "running"} | fields
    ).encode()


# From the engine's snapshot


@pytest.mark.parametrize("name", ["kv.run_completed", "api.get_reply"])
def test_completed_run_has_the_outputs_of_its_steps(name: str) -> None:
    status = status_from_snapshot(WIRE[name].encode())
    assert status == RunStatus(
        RUN,
        "completed",
        "hello",
        {"greet": StepStatus("completed", attempts=1, output={"greeting": "Hello Ada"})},
    )
    assert status.outputs == {"greet": {"greeting": "Hello Ada"}}


def test_cancelled_run_has_no_outputs() -> None:
    status = status_from_snapshot(WIRE["kv.run_cancelled"].encode())
    assert status.status == "cancelled"
    assert status.steps == {"greet": StepStatus("cancelled", attempts=1)}
    assert status.outputs == {}


def test_map_in_flight_shows_what_is_done() -> None:
    status = status_from_snapshot(WIRE["kv.run_map_in_flight"].encode())
    assert status.status == "running"
    assert status.outputs == {"list": [3, 4]}
    assert status.steps["square"] == StepStatus("running")


def test_failed_step_shows_its_error() -> None:
    step = {"status": "failed", "attempts": 3, "error": "no luck"}
    status = status_from_snapshot(snapshot(status="failed", steps={"greet": step}))
    assert status.steps["greet"] == StepStatus("failed", 3, error="no luck")


def test_word_that_is_new_is_passed_on() -> None:
    steps = {"greet": {"status": "hibernating", "attempts": 1, "new_field": [1]}}
    status = status_from_snapshot(snapshot(status="compensated", steps=steps, new_field={}))
    assert (status.status, status.steps["greet"].status) == ("compensated", "hibernating")


@pytest.mark.parametrize("steps", [{}, None])
def test_run_without_steps_is_a_run(steps: dict[str, Any] | None) -> None:
    assert status_from_snapshot(snapshot(steps=steps)).steps == {}
    assert status_from_snapshot(snapshot()).steps == {}


def test_empty_output_is_none() -> None:
    for output in ("", None):
        step = {"status": "completed", "attempts": 1, "output": output}
        status = status_from_snapshot(snapshot(steps={"greet": step}))
        assert status.outputs == {"greet": None}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'{"status":7}',
        b'{"steps":[]}',
        b'{"steps":{"a":{"attempts":"1"}}}',
        b'{"steps":{"a":{"output":"!"}}}',
        b'{"steps":{"a":{"output":"bm90IGpzb24="}}}',
        b'{"run_id":"\xff"}',
    ],
)
def test_what_is_no_snapshot_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        status_from_snapshot(data)


# From the history


def event(kind: str, step_id: str = "greet", *, attempt: int = 0, payload: Any = None) -> RunEvent:
    return RunEvent(kind, step_id, datetime.now(UTC), payload, attempt, "worker-1", 1)


def status_of(*events: RunEvent) -> RunStatus:
    return status_from_events(RUN, events)


STARTED = event("step.started", attempt=1)
FAILURE = {"error": "no luck", "failure_type": "retriable"}


@pytest.mark.parametrize(
    ("events", "status", "step"),
    [
        ([], "pending", None),
        ([event("step.queued")], "pending", None),
        ([STARTED], "running", StepStatus("running", 1)),
        ([STARTED, event("step.released", attempt=1)], "running", StepStatus("queued", 1)),
        (
            [STARTED, event("step.completed", attempt=1, payload={"a": 1})],
            "completed",
            StepStatus("completed", 1, {"a": 1}),
        ),
        (
            [STARTED, event("step.failed", attempt=1, payload=FAILURE)],
            "failed",
            StepStatus("failed", 1, error="no luck"),
        ),
        ([STARTED, event("step.continue")], "running", StepStatus("running", 1)),
        ([STARTED, event("workflow.cancelled", "")], "cancelled", StepStatus("running", 1)),
        ([event("workflow.cancelled", ""), STARTED], "cancelled", StepStatus("running", 1)),
        ([STARTED, event("something.new")], "running", StepStatus("running", 1)),
    ],
)
def test_history_tells_the_state(
    events: list[RunEvent], status: str, step: StepStatus | None
) -> None:
    expected = {} if step is None else {"greet": step}
    assert status_of(*events) == RunStatus(RUN, status, steps=expected)


def test_error_of_the_last_failed_attempt_stays_after_a_success() -> None:
    status = status_of(
        STARTED,
        event("step.failed", attempt=1, payload=FAILURE),
        event("step.started", attempt=2),
        event("step.completed", attempt=2, payload="done"),
    )
    assert status.status == "completed"
    assert status.steps["greet"] == StepStatus("completed", 2, "done", "no luck")
    assert status.outputs == {"greet": "done"}


def test_attempts_are_those_of_the_highest_event() -> None:
    status = status_of(event("step.started", attempt=3), event("step.completed", attempt=0))
    assert status.steps["greet"].attempts == 3


@pytest.mark.parametrize("payload", [None, "no luck", 7, {}])
def test_failure_that_says_nothing_is_a_failure(payload: Any) -> None:
    status = status_of(event("step.failed", payload=payload))
    assert (status.status, status.steps["greet"].status) == ("failed", "failed")


KINDS = [
    *("step.started", "step.completed", "step.failed", "step.continue", "step.released"),
    *("step.queued", "workflow.cancelled", "something.else"),
]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(["a", "b"])), max_size=15))
def test_cancel_is_never_forgotten_and_every_step_that_has_moved_is_there(
    entries: list[tuple[str, str]],
) -> None:
    status = status_of(*(event(kind, step) for kind, step in entries))
    cancelled = any(kind == "workflow.cancelled" for kind, _ in entries)
    assert (status.status == "cancelled") == cancelled
    moved = {step for kind, step in entries if kind in KINDS[:5]}
    assert set(status.steps) == moved
