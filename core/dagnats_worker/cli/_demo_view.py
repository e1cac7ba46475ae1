"""Three ways to watch the demo: live on a terminal, line by line, as JSON."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dagnats_worker import _json
from dagnats_worker._durations import format_duration
from dagnats_worker._run import RunEvent
from dagnats_worker.cli._demo_board import Board, Row, State
from dagnats_worker.cli._demo_tasks import KINDS

FRAMES_PER_SECOND = 12
NARROW_COLUMNS = 64
BAR_WIDTH_MAX = 40
WIDTH_BEFORE_LAST, WIDTH_BEFORE_LAST_NARROW = 45, 32
FIXED_LINES = len(KINDS) + 8
ACTIVE_ROWS_MAX = 12

COLORS: dict[State, str] = {
    "queued": "bright_black",
    "running": "cyan",
    "retrying": "yellow",
    "completed": "green",
    "failed": "red",
}
GLYPHS: dict[State, str] = {
    "queued": "·",
    "running": "◐",
    "retrying": "↻",
    "completed": "●",
    "failed": "✗",
}
TURNING = "◐◓◑◒"
TURNS_PER_SECOND = 6
ASCII_GLYPHS: dict[State, str] = {
    "queued": ".",
    "running": "o",
    "retrying": "r",
    "completed": "#",
    "failed": "x",
}


def glyphs_for(console: Console) -> dict[State, str]:
    """The marks that this terminal can show."""
    can_show_all = console.encoding.lower().startswith("utf")
    return dict(GLYPHS if can_show_all else ASCII_GLYPHS)


def strip(rows: list[Row], glyphs: dict[State, str]) -> Text:
    """One mark for each task."""
    text = Text(no_wrap=True)
    for row in rows:
        text.append(glyphs[row.state], COLORS[row.state])
    return text


class LiveView:
    """Redraws a few times a second: a mark for each task, and what runs right now.

    Attributes:
        screen: A context manager: what is drawn while it is open is gone when it is closed.
    """

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._glyphs = glyphs_for(console)
        self.screen = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
        )

    def submitted(self, row: Row) -> None:
        """Nothing to do: the next frame shows it, as everything else."""

    def event(self, row: Row, event: RunEvent) -> None:
        """As above."""

    def chunk(self, row: Row, chunk: bytes) -> None:
        """As above."""

    def render(self) -> RenderableType:
        """One frame."""
        if self._glyphs["running"] in TURNING:
            turn = int(time.monotonic() * TURNS_PER_SECOND) % len(TURNING)
            self._glyphs["running"] = TURNING[turn]
        return Group(Text(), self._kinds(), Text(), self._active(), Text(), self._progress())

    def _kinds(self) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        for kind in KINDS:
            cells: list[RenderableType] = [Text(f"  {kind.name}", "bold")]
            if self._console.width >= NARROW_COLUMNS:
                cells.append(Text(kind.shows, "dim"))
            table.add_row(*cells, strip(self._board.of(kind), self._glyphs))
        return table

    def _active(self) -> Table:
        wide = self._console.width >= NARROW_COLUMNS
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(width=12, no_wrap=True)
        table.add_column(width=16, no_wrap=True)
        if wide:
            table.add_column(width=3, no_wrap=True)
            table.add_column(width=6, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head = ("  RUN", "STATE", *(("TRY", "TIME") if wide else ()), "LAST SEEN")
        table.add_row(*(Text(title, "dim") for title in head))
        room = max(1, min(ACTIVE_ROWS_MAX, self._console.height - FIXED_LINES))
        active = self._most_interesting(room)
        for row in active:
            details = (str(row.attempt), self._time_of(row)) if wide else ()
            last = Text(self._tail(row.last, wide=wide), "dim" if row.state == "retrying" else "")
            table.add_row(f"  {row.label}", self._state_of(row), *details, last)
        for _ in range(room - len(active)):
            table.add_row("")
        return table

    def _most_interesting(self, room: int) -> list[Row]:
        """What runs, then what waits for its next attempt, in an order that does not jump about."""
        rows = [row for row in self._board.rows if row.state == "running"]
        rows.sort(key=lambda row: not row.kind.streams)
        rows += [row for row in self._board.rows if row.state == "retrying"]
        return rows[:room]

    def _state_of(self, row: Row) -> Text:
        text = f"{self._glyphs[row.state]} {row.state}"
        if row.state == "retrying":
            wait_s = max(0.0, row.retry_at - time.monotonic())
            text = f"{self._glyphs[row.state]} retry in {wait_s:.1f} s"
        return Text(text, COLORS[row.state])

    def _time_of(self, row: Row) -> str:
        if row.state != "running":
            return ""
        return format_duration(timedelta(seconds=time.monotonic() - row.started_at))

    def _tail(self, text: str, *, wide: bool) -> str:
        """The end of what is streamed, which is what is new."""
        room = max(
            8, self._console.width - (WIDTH_BEFORE_LAST if wide else WIDTH_BEFORE_LAST_NARROW)
        )
        return text if len(text) <= room else f"…{text[1 - room :]}"

    def _progress(self) -> Table:
        board = self._board
        total, ended = len(board.rows), sum(row.ended for row in board.rows)
        width = min(BAR_WIDTH_MAX, max(10, self._console.width - 24))
        table = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total, ended, width, complete_style="green", finished_style="green")
        table.add_row(
            Text(" "),
            bar,
            f"{ended}/{total}",
            Text(f"{board.elapsed.total_seconds():.1f} s", "dim"),
        )
        return table


class PlainView:
    """One line whenever a task ends or has to be tried again; for logs and pipes."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console

    def submitted(self, row: Row) -> None:
        """Not worth a line."""

    def event(self, row: Row, event: RunEvent) -> None:
        """Print an end, or a failed attempt."""
        if row.state in ("queued", "running"):
            return
        at = f"{self._board.elapsed.total_seconds():7.2f} s"
        self._console.print(
            Text(f"{at}  {row.state:<10} {row.label:<12} try {row.attempt}  {row.last}"),
            soft_wrap=True,
        )

    def chunk(self, row: Row, chunk: bytes) -> None:
        """Not worth a line."""


class JsonView:
    """One JSON object for everything that happens; for programs."""

    def __init__(self, board: Board, console: Console) -> None:
        self._console = console

    def submitted(self, row: Row) -> None:
        """``task.submitted``, with its input."""
        self.write("task.submitted", row, input=row.task_input)

    def event(self, row: Row, event: RunEvent) -> None:
        """The event of the history, under its own name."""
        self.write(
            event.type,
            row,
            attempt=event.attempt,
            timestamp=event.timestamp,
            sequence=event.sequence,
            payload=event.payload,
        )

    def chunk(self, row: Row, chunk: bytes) -> None:
        """``task.chunk``, which no history keeps."""
        self.write("task.chunk", row, text=chunk.decode(errors="replace"))

    def write(self, event: str, row: Row | None = None, **fields: Any) -> None:
        """Print one object."""
        of_task = {"task_type": row.kind.name, "run_id": row.run_id} if row is not None else {}
        line = _json.encode({"event": event, **of_task, **fields}).decode()
        self._console.file.write(line + "\n")
        self._console.file.flush()
