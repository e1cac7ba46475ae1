"""What the demo has shown, once it is over."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagnats_worker._durations import format_duration
from dagnats_worker.cli._demo_board import Board, Row
from dagnats_worker.cli._demo_tasks import KINDS
from dagnats_worker.cli._demo_view import NARROW_COLUMNS, glyphs_for, strip
from dagnats_worker.cli._screen import counted

WIDE_COLUMNS = 78

NEXT = (
    ("dagnats-worker run app:worker --embedded", "your own worker, with a server"),
    ("dagnats-worker submit greet '\"Ada\"' --wait", "a task for it"),
    ("dagnats-worker --help", "all the rest"),
)


def print_summary(board: Board, console: Console, *, left_behind: str = "") -> None:
    """Print how it went, what each kind of task took, and why some failed for good."""
    console.print()
    console.print(_verdict(board, console))
    console.print()
    console.print(_kinds(board, console))
    dead = [row for row in board.rows if row.state == "failed"]
    if dead:
        console.print()
        console.print(
            Text.assemble(
                ("Dead letters", "bold"),
                ("  kept with their input, to look at; nobody runs them again", "dim"),
            )
        )
        console.print(_dead_letters(dead))
    if left_behind:
        console.print()
        console.print(Text(left_behind, "dim"))
    console.print()
    console.print(_next_steps(console))


def _verdict(board: Board, console: Console) -> Text:
    problems = board.problems()
    seconds = format_duration(board.elapsed)
    counts = f"{board.count('completed')} completed, {board.count('failed')} failed for good"
    mark = "✔" if glyphs_for(console)["failed"] == "✗" else "ok"
    if problems:
        text = Text.assemble((f"{counts}, not as expected, in {seconds}", "bold red"))
        for problem in problems:
            text.append(f"\n  {problem}")
        return text
    return Text.assemble(
        (f"{mark} {counted(len(board.rows), 'task')} in {seconds}", "bold green"),
        f": {counts}, as they should",
    )


def _kinds(board: Board, console: Console) -> Table:
    wide = console.width >= WIDE_COLUMNS
    table = Table.grid(padding=(0, 2, 0, 0))
    titles = ["  TASK", "WHAT IT SHOWS", "TRIES", "MEDIAN", "SLOWEST", "ENDED"]
    numbers = ("TRIES", "MEDIAN", "SLOWEST")
    if console.width < NARROW_COLUMNS:
        titles = ["  TASK", "TRIES", "MEDIAN", "ENDED"]
    elif not wide:
        titles.remove("SLOWEST")
    for title in titles:
        table.add_column(justify="right" if title in numbers else "left", no_wrap=True)
    table.add_row(*(Text(title, "dim") for title in titles))
    glyphs = glyphs_for(console)
    for kind in KINDS:
        rows = board.of(kind)
        middle, longest = board.durations(kind)
        cells = {
            "  TASK": Text(f"  {kind.name}", "bold"),
            "WHAT IT SHOWS": Text(kind.shows, "dim"),
            "TRIES": Text(str(sum(row.attempt for row in rows))),
            "MEDIAN": Text(format_duration(middle)),
            "SLOWEST": Text(format_duration(longest)),
            "ENDED": strip(rows, glyphs),
        }
        table.add_row(*(cells[title] for title in titles))
    return table


def _dead_letters(rows: list[Row]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(
            Text(f"  {row.label}", "red"),
            Text(counted(row.attempt, "try").replace("trys", "tries")),
            Text.assemble(row.last, (f"; {row.kind.why}", "dim")),
        )
    return table


def _next_steps(console: Console) -> Text:
    text = Text("Next", "bold")
    for line in _step_lines(console.width):
        text.append_text(line)
    return text


def _step_lines(width: int) -> Iterator[Text]:
    longest = max(len(command) for command, _ in NEXT)
    for command, explanation in NEXT:
        line = Text.assemble(("\n  " + command.ljust(longest), "cyan"))
        if width >= WIDE_COLUMNS:
            line.append(f"   {explanation}", "dim")
        yield line
