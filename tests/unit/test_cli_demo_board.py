"""What the demo believes of its tasks, what it calls a problem, and how it looks.

Method: events by hand; screens of several sizes as text. Real: the board and its views. Fake: the
events and the terminal.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from dagnats_worker._run import RunEvent
from dagnats_worker.cli._demo_board import Board, Row
from dagnats_worker.cli._demo_summary import print_summary
from dagnats_worker.cli._demo_tasks import KINDS
from dagnats_worker.cli._demo_view import LiveView
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


SIZES = [(200, 60), (120, 40), (80, 24), (64, 24), (50, 20), (40, 12)]


class Utf8(io.StringIO):
    encoding = "utf-8"


def terminal(columns: int, rows: int, file: io.StringIO) -> Console:
    return Console(file=file, width=columns, height=rows, force_terminal=True, color_system=None)


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_live_screen_fits_the_terminal(columns: int, rows: int) -> None:
    board = Board("x")
    for row in board.rows:
        row.take_event(event("step.started"))
        for word in (f"word{number}" for number in range(30)):
            row.take_chunk(word.encode())
    board.rows[-1].take_event(event("step.released", {"reason": "retry", "delay_ms": 9000}))
    play(board.rows[0])
    screen = Utf8()
    console = terminal(columns, rows, screen)
    console.print(LiveView(board, console).render())
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) < max(rows, 20)
    assert "word29" in screen.getvalue(), "the newest of what is streamed"
    assert f"1/{len(board.rows)}" in screen.getvalue()


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_summary_fits_the_terminal(board: Board, columns: int, rows: int) -> None:
    screen = Utf8()
    print_summary(board, terminal(columns, rows, screen), left_behind="Left on a server: a lot")
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= max(columns, 44), "commands are not broken in two"
    assert f"{len(board.rows)} tasks in " in text
    assert "as they should" in " ".join(text.split())
    assert "all its attempts are used up" in " ".join(text.split())


def test_terminal_without_unicode_gets_plain_marks(board: Board) -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

    screen = Ascii()
    print_summary(board, terminal(80, 24, screen))
    assert screen.getvalue().isascii()
    assert "ok 36 tasks" in screen.getvalue()
