"""``dagnats-worker events``: the history of a run."""

from __future__ import annotations

import shutil
import sys
from datetime import datetime
from typing import Any

import click

from dagnats_worker import _json
from dagnats_worker._client import Client
from dagnats_worker._durations import format_duration
from dagnats_worker._protocol import STEP_COMPLETED, STEP_FAILED, STEP_RELEASED, STEP_STARTED
from dagnats_worker._run import WORKFLOW_ENDS, RunEvent
from dagnats_worker.cli._connection import ConnectionOptions, connection_options
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._main import EXIT_FAILED, tell_error
from dagnats_worker.cli._rows import cut, one_line
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import dim, tell
from dagnats_worker.cli._values import run_id as run_id_value

STEP_WIDTH_MIN, STEP_WIDTH_MAX = 6, 24
NARROW_COLUMNS = 96
PAYLOAD_WIDTH_MIN = 16
HEAD = ("TIME", "", "EVENT", "STEP", "TRY")
EVENT_COLORS = {
    "completed": "green",
    "failed": "red",
    "cancelled": "red",
    "released": "yellow",
    "started": "cyan",
}


@click.command(cls=Command)
@click.argument("run_id", metavar="RUN", type=run_id_value)
@click.option("--follow", "-f", is_flag=True, help="Go on with what still happens, to its end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@connection_options
def events(run_id: str, *, follow: bool, as_json: bool, connection: ConnectionOptions) -> int:
    """Show what happened in a run, event by event.

    With --follow it ends when the run does; without an engine, when all of its steps have.
    """
    return run_async(_events(run_id, connection, follow=follow, as_json=as_json))


async def _events(
    run_id: str, connection: ConnectionOptions, *, follow: bool, as_json: bool
) -> int:
    end = End()
    show = _show_json if as_json else Table().show
    async with Client(config=connection.config) as client:
        async for event in client.run(run_id).events(follow=follow):
            show(event)
            if end.reached_with(event) and follow:
                break
    if end.events:
        return 0
    tell_error(
        f"run {run_id!r} has no events: no worker has started it yet, or its id is another one; "
        "wait for it with --follow"
    )
    return EXIT_FAILED


class End:
    """Knows from its events when a run has ended, with an engine or without one."""

    def __init__(self) -> None:
        self.events = 0
        self._by_engine = False
        self._open_steps: set[str] = set()

    def reached_with(self, event: RunEvent) -> bool:
        """Whether the run has ended with this event."""
        self.events += 1
        if event.type.startswith("workflow."):
            self._by_engine = True
            return event.type in WORKFLOW_ENDS
        if event.type in (STEP_COMPLETED, STEP_FAILED):
            self._open_steps.discard(event.step_id)
        else:
            self._open_steps.add(event.step_id)
        return not self._open_steps and not self._by_engine


def _show_json(event: RunEvent) -> None:
    fields = {
        "event": event.type,
        "step_id": event.step_id,
        "timestamp": event.timestamp,
        "attempt": event.attempt,
        "worker_id": event.worker_id,
        "sequence": event.sequence,
        "payload": event.payload,
    }
    tell(_json.encode(fields).decode())


class Table:
    """Prints events one by one, as rows that fit the terminal."""

    def __init__(self) -> None:
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self._is_narrow = self._width is not None and self._width < NARROW_COLUMNS
        self._before: datetime | None = None
        self._step_width = STEP_WIDTH_MIN

    def show(self, event: RunEvent) -> None:
        """Print one row, and the head before the first."""
        if self._before is None:
            self._step_width = max(STEP_WIDTH_MIN, min(len(event.step_id), STEP_WIDTH_MAX))
            tell(dim(self._row(HEAD, "")))
        at = event.timestamp
        elapsed = format_duration(at - self._before) if at and self._before else ""
        self._before = at or self._before
        cells = (
            at.astimezone().strftime("%H:%M:%S.%f")[:12] if at else "",
            f"+{elapsed}" if elapsed else "",
            event.type,
            event.step_id,
            str(event.attempt or ""),
        )
        row = self._row(cells, explain(event))
        word = event.type.rpartition(".")[2]
        color = EVENT_COLORS.get(word)
        tell(row.replace(event.type, click.style(event.type, fg=color), 1) if color else row)

    def _row(self, cells: tuple[str, str, str, str, str], text: str) -> str:
        at, elapsed, kind, step, attempt = cells
        step = cut(step, self._step_width)
        times = f"{at:<12}  " if self._is_narrow else f"{at:<12}  {elapsed:<8}  "
        row = f"{times}{kind:<14}  {step:<{self._step_width}}  {attempt:<3}  "
        if self._width is None:
            return (row + one_line(text)).rstrip()
        return (row + cut(text, max(PAYLOAD_WIDTH_MIN, self._width - len(row)))).rstrip()


def explain(event: RunEvent) -> str:
    """What an event says beside its type, in one line for people."""
    payload = event.payload
    fields: dict[str, Any] = payload if isinstance(payload, dict) else {}
    if event.type == STEP_STARTED:
        return f"by {event.worker_id}" if event.worker_id else ""
    if event.type == STEP_FAILED and "error" in fields:
        return f"{fields['error']} ({fields.get('failure_type', 'non_retriable')})"
    if event.type == STEP_RELEASED and "reason" in fields:
        why = f": {fields['error']}" if fields.get("error") else ""
        if fields.get("kept"):
            return f"{fields['reason']}, until somebody dispatches it again{why}"
        return f"{fields['reason']}, again in {fields.get('delay_ms', 0)} ms{why}"
    return "" if payload is None else _json.encode(payload).decode()
