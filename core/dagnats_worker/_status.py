"""The state of a run: from the engine's snapshot, or from the history where there is no engine."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dagnats_worker import _json
from dagnats_worker._protocol import (
    STEP_COMPLETED,
    STEP_CONTINUE,
    STEP_FAILED,
    STEP_RELEASED,
    STEP_STARTED,
    WORKFLOW_CANCELLED,
)
from dagnats_worker._run import RunEvent
from dagnats_worker.errors import DecodeError

STATUS_OF_EVENT = {
    STEP_STARTED: "running",
    STEP_CONTINUE: "running",
    STEP_RELEASED: "queued",
    STEP_COMPLETED: "completed",
    STEP_FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step of a run.

    Attributes:
        status: ``queued``, ``running``, ``completed``, ``failed``, or another word of the engine.
        output: The decoded output; None where there is none.
        error: Of the last failed attempt; stays after a later success.
    """

    status: str
    attempts: int = 0
    output: Any = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run.

    Attributes:
        status: ``pending``, ``running``, ``completed``, ``failed``, ``cancelled``, or another word
            of the engine.
        workflow: Its name; empty without an engine.
    """

    run_id: str
    status: str
    workflow: str = ""
    steps: dict[str, StepStatus] = field(default_factory=dict)

    @property
    def outputs(self) -> dict[str, Any]:
        """The output of each completed step."""
        return {
            name: step.output for name, step in self.steps.items() if step.status == "completed"
        }


class _Step(msgspec.Struct):
    status: str = ""
    attempts: int = 0
    output: str | None = None
    error: str = ""


class _Snapshot(msgspec.Struct):
    run_id: str = ""
    workflow_id: str = ""
    status: str = ""
    steps: dict[str, _Step] | None = None  # Go writes a map that was never made as null


def status_from_snapshot(data: bytes) -> RunStatus:
    """Read a run's snapshot as the engine stores it.

    Raises:
        DecodeError: It is not one.
    """
    try:
        snapshot = msgspec.json.decode(data, type=_Snapshot)
        steps = {
            name: StepStatus(
                step.status,
                step.attempts,
                _json.decode(base64.b64decode(step.output)) if step.output else None,
                step.error,
            )
            for name, step in (snapshot.steps or {}).items()
        }
    except ValueError as error:
        raise DecodeError(f"snapshot of a run: {error}") from error
    return RunStatus(snapshot.run_id, snapshot.status, snapshot.workflow_id, steps)


def status_from_events(run_id: str, events: Iterable[RunEvent]) -> RunStatus:
    """What the history of a run without an engine says of it."""
    steps: dict[str, StepStatus] = {}
    status = "pending"
    for event in events:
        if event.type == WORKFLOW_CANCELLED:
            status = "cancelled"
        word = STATUS_OF_EVENT.get(event.type)
        if word is None or not event.step_id:
            continue
        before = steps.get(event.step_id, StepStatus(word))
        error = before.error
        if event.type == STEP_FAILED and isinstance(event.payload, dict):
            error = str(event.payload.get("error", ""))
        output = event.payload if event.type == STEP_COMPLETED else None
        steps[event.step_id] = StepStatus(word, max(before.attempts, event.attempt), output, error)
        if status != "cancelled":
            status = "running" if word == "queued" else word
    return RunStatus(run_id, status, steps=steps)
