"""``workers --watch``: live on a terminal, one line for each change elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dagnats_worker_directory._directory import Directory
from dagnats_worker_directory._fleet import fleet, record, state_of
from dagnats_worker_directory._following import Change, Joined, Left, Updated
from dagnats_worker_directory._registration import WorkerRegistration
from dagnats_worker_directory._table import console_for, plain

FRAMES_PER_SECOND = 2
LINES_BESIDE_ROWS = 5


async def follow(directory: Directory, *, as_json: bool, is_connected: Callable[[], bool]) -> None:
    """Show what changes, until it is cancelled."""
    console = console_for()
    if console.is_terminal and not as_json:
        await _live(directory, console, is_connected)
        return
    show = _tell_json if as_json else _tell_line
    async with aclosing(directory.watch()) as changes:
        async for change in changes:
            show(change)


# ---------------------------------------------------------------------- lines


def _tell_json(change: Change) -> None:
    click.echo(json.dumps(change_record(change), ensure_ascii=False))


def change_record(change: Change) -> dict[str, Any]:
    """One change, for programs."""
    match change:
        case Joined():
            return {"change": "joined", "worker": record(change.worker)}
        case Updated():
            return {"change": "updated", "worker": record(change.worker)}
        case Left():
            return {"change": "left", "expired": change.expired, "worker": record(change.worker)}


def _tell_line(change: Change) -> None:
    worker = change.worker
    at = datetime.now().astimezone().strftime("%H:%M:%S")
    what = ""
    match change:
        case Joined():
            what = f"joined   {', '.join(worker.task_types)}"
        case Updated():
            report = worker.report
            load = f"{report.slots_in_use}/{report.slots}" if report.slots else ""
            what = f"updated  {state_of(worker).plain}  {load}".rstrip()
        case Left():
            what = "left     silent for too long" if change.expired else "left"
    click.echo(f"{at}  {plain(worker.worker_id)}  {plain(what)}")


# ---------------------------------------------------------------------- live


async def _live(directory: Directory, console: Console, is_connected: Callable[[], bool]) -> None:
    listed: dict[str, WorkerRegistration] = {}
    live = Live(
        get_renderable=lambda: _frame(
            listed, directory.unreadable, console, connected=is_connected()
        ),
        console=console,
        refresh_per_second=FRAMES_PER_SECOND,
    )
    async with aclosing(directory.watch(heartbeats=True)) as changes:
        with live:
            async for change in changes:
                if isinstance(change, Left):
                    listed.pop(change.worker.worker_id, None)
                else:
                    listed[change.worker.worker_id] = change.worker


def _frame(
    listed: Mapping[str, WorkerRegistration],
    unreadable: Mapping[str, str],
    console: Console,
    *,
    connected: bool,
) -> Group:
    """One picture; drawn in a thread of its own while ``listed`` changes."""
    workers = [worker for _, worker in sorted(dict(listed).items())]
    rows_max = max(1, console.height - LINES_BESIDE_ROWS)
    lines = fleet(workers, console, rows_max=rows_max) if workers else [Text("no worker is listed")]
    if unreadable:
        count = len(unreadable)
        lines.append(Text(f"{count} entr{'y' if count == 1 else 'ies'} cannot be read", "yellow"))
    if not connected:
        lines.append(Text("no connection to the server; this is what was known before", "red"))
    return Group(*lines)
