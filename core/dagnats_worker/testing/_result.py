"""What a harness says of one delivery of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dagnats_worker import _json
from dagnats_worker._ack import Ack, Nak, Term
from dagnats_worker._outcome import Completed, Continued, Failed, Outcome
from dagnats_worker._run import RunEvent


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of one delivery of a task.

    Attributes:
        deliveries: How many times the task has been delivered, this one included.
        verdict: What NATS was told: ``Ack()``, ``Nak(delay)`` or ``Term(reason)``.
        outcome: How the task ended; None where nothing was published.
        failure: What the handler failed with, also where a plugin has answered it with something
            else, or the task is to be tried again.
        events: What was added to the history of the run since the last result.
        chunks: What the handler has streamed since the last result.
    """

    run_id: str
    step_id: str
    deliveries: int
    verdict: Ack | Nak | Term
    outcome: Outcome | None
    failure: Failed | None
    events: tuple[RunEvent, ...]
    chunks: tuple[bytes, ...]

    @property
    def output(self) -> Any:
        """What the step was completed with, or this turn of a loop; None where it was not."""
        if not isinstance(self.outcome, Completed | Continued) or not self.outcome.output:
            return None
        return _json.decode(self.outcome.output)

    @property
    def error(self) -> str | None:
        """The text of the failure; None where there was none."""
        return self.failure.error if self.failure is not None else None

    @property
    def exception(self) -> BaseException | None:
        """What the handler has raised; None where it has not."""
        return self.failure.exception if self.failure is not None else None
