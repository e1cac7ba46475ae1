"""What the demo believes of its tasks, and what it calls a problem.

Method: events by hand. Real: the board. Fake: the events.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dagnats_worker._run import RunEvent
from dagnats_worker.cli._demo_board import Board, Row
from dagnats_worker.cli._demo_tasks import KINDS
from dagnats_worker.cli._main import SECTIONS

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


def event(kind: str, payload: Any = None, *, attempt: int = 1, after_ms: int = 0) -> RunEvent:
    at = BEGAN + timedelta(milliseconds=after_ms)
    return RunEvent(kind, "step", at, payload, attempt, "worker-1", 1)


def play(row: Row) -> None:
    """Let a task end as it should."""
    for attempt in range(1, row.kind.attempts):
        row.take_event(event("step.started", attempt=attempt))
        row.take_event(event("step.released", {"reason": "retry", "delay_ms": 5}, attempt=attempt))
    row.take_event(event("step.started", attempt=row.kind.attempts))
    if row.kind.ends == "failed":
        row.take_event(event("step.failed", {"error": "no"}, after_ms=30))
    else:
        row.take_event(event("step.completed", "yes", after_ms=30))


@pytest.fixture
def board() -> Board:
    """A board on which everything went as it should."""
    board = Board("x")
    for row in board.rows:
        play(row)
    board.dead_letters = {row.run_id: True for row in board.rows if row.state == "failed"}
    return board


def test_nothing_is_wrong_when_all_ended_as_they_should(board: Board) -> None:
    assert board.problems() == []
    assert board.count("completed") + board.count("failed") == len(board.rows)
    assert board.durations(KINDS[0]) == (timedelta(milliseconds=30), timedelta(milliseconds=30))


def test_task_that_never_ended_is_a_problem(board: Board) -> None:
    board.rows[0].state = "running"
    assert board.problems() == ["greet-1 has not ended; it is running"]


def test_task_that_ended_the_other_way_is_a_problem(board: Board) -> None:
    board.rows[0].take_event(event("step.failed", {"error": "oh"}))
    assert "greet-1 failed, and should not have: oh" in board.problems()


def test_task_that_needed_another_number_of_attempts_is_a_problem(board: Board) -> None:
    board.rows[0].take_event(event("step.started", attempt=2))
    board.rows[0].take_event(event("step.completed", "yes"))
    assert board.problems() == ["greet-1 took 2 attempts, not 1"]


def test_failure_without_a_dead_letter_is_a_problem(board: Board) -> None:
    board.dead_letters = {run_id: "charge-1" not in run_id for run_id in board.dead_letters}
    assert board.problems() == ["charge-1 has left no dead letter"]


def test_help_counts_the_tasks_right() -> None:
    assert f"{len(Board('x').rows)} tasks" in SECTIONS["Start here"]["demo"].help
