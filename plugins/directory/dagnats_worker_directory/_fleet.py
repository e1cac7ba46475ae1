"""The workers of a fleet as rows of a table, and as records for programs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from dagnats_worker.errors import DecodeError
from dagnats_worker_directory._registration import WorkerRegistration, parse_time
from dagnats_worker_directory._table import Column, cut, plain, table

BAR_CELLS = 6
TYPES_WIDTH, TYPES_WIDTH_MIN = 32, 12
GROUPS_WIDTH = 16
HOST_WIDTH = 20
LATE_AFTER_S = 45.0
MARKS = {"running": ("●", "green"), "draining": ("◐", "yellow"), "blocked": ("▲", "red")}
ASCII_MARKS = {"●": "*", "◐": "~", "▲": "!", "█": "#", "░": ".", "…": "~"}
UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def record(worker: WorkerRegistration) -> dict[str, Any]:
    """One worker, for programs: the entry, and what its metadata says by itself."""
    report = worker.report
    return {
        "worker_id": worker.worker_id,
        "language": worker.language,
        "state": report.state or None,
        "task_types": list(worker.task_types),
        "groups": list(report.groups),
        "slots_in_use": report.slots_in_use,
        "max_tasks": worker.max_tasks,
        "loop_blocked_s": report.loop_blocked_s,
        "version": worker.version,
        "core": report.core or None,
        "python": report.python or None,
        "plugins": dict(report.plugins),
        "hostname": worker.hostname,
        "pid": worker.pid,
        "transport": worker.transport,
        "started_at": report.started_at or None,
        "last_seen": worker.last_seen,
        "metadata": dict(report.more),
    }


def fleet(
    workers: Sequence[WorkerRegistration], console: Console, *, rows_max: int | None = None
) -> list[Text]:
    """The lines of the table; on a terminal as wide as that, and with a sum below.

    Args:
        rows_max: Only so many workers are shown, and the rest is counted.
    """
    now = datetime.now(UTC)
    shown = workers if rows_max is None else workers[:rows_max]
    width = console.width if console.is_terminal else None
    lines = table(_columns(now, with_bars=console.is_terminal), shown, width=width)
    if len(shown) < len(workers):
        lines.append(Text(f"and {len(workers) - len(shown)} more", "dim"))
    if width is not None:
        lines.append(cut(Text(summary(workers), "dim"), width))
    if not console.encoding.lower().startswith("utf"):
        lines = [_in_ascii(line) for line in lines]
    return lines


def summary(workers: Sequence[WorkerRegistration]) -> str:
    """How many there are, and how busy they are."""
    count = f"{len(workers)} worker" + ("" if len(workers) == 1 else "s")
    known = [one.report for one in workers if one.report.slots_in_use is not None]
    if not known:
        return count
    in_use = sum(one.slots_in_use or 0 for one in known)
    return f"{count}, {in_use} of {sum(one.slots or 0 for one in known)} slots in use"


def _columns(now: datetime, *, with_bars: bool) -> list[Column[WorkerRegistration]]:
    return [
        Column("WORKER", lambda one: Text(plain(one.worker_id), "cyan")),
        Column("STATE", state_of),
        Column("LOAD", lambda one: load_of(one, with_bar=with_bars), rank=1),
        Column(
            "TYPES", lambda one: _text(", ".join(one.task_types)), 3, TYPES_WIDTH, TYPES_WIDTH_MIN
        ),
        Column("GROUPS", lambda one: _text(", ".join(one.report.groups)), 4, GROUPS_WIDTH),
        Column("LANGUAGE", lambda one: _text(one.language), rank=6),
        Column("VERSION", lambda one: _text(one.version), rank=5, width_max=GROUPS_WIDTH),
        Column("UP", lambda one: _text(_since(one.report.started_at, now)), rank=7),
        Column("SEEN", lambda one: seen_of(one, now), rank=2),
        Column("HOST", lambda one: _text(one.hostname), rank=8, width_max=HOST_WIDTH),
    ]


def state_of(worker: WorkerRegistration) -> Text:
    """What it is doing, as far as it says so."""
    report = worker.report
    if report.loop_blocked_s:
        mark, color = MARKS["blocked"]
        return Text(f"{mark} blocked {age_text(report.loop_blocked_s)}", color)
    if not report.state:
        return Text("-", "dim")
    mark, color = MARKS.get(report.state, ("-", ""))
    return Text(f"{mark} {plain(report.state)}", color)


def load_of(worker: WorkerRegistration, *, with_bar: bool) -> Text:
    """How many of its slots are in use, of how many."""
    report = worker.report
    if report.slots_in_use is None or not report.slots:
        return Text(f"-/{worker.max_tasks}", "dim")
    text = Text()
    if with_bar:
        share = min(1.0, report.slots_in_use / report.slots)
        cells = max(round(share * BAR_CELLS), 1 if share else 0)
        text.append("█" * cells, "red" if share == 1 else "green")
        text.append("░" * (BAR_CELLS - cells) + " ", "dim")
    return text.append(f"{report.slots_in_use}/{report.slots}")


def seen_of(worker: WorkerRegistration, now: datetime) -> Text:
    """How long ago it wrote its entry, by its own clock."""
    age_s = (now - worker.last_seen_at).total_seconds()
    return Text(age_text(age_s), "yellow" if age_s > LATE_AFTER_S else "")


def age_text(age_s: float) -> str:
    """``42s``, ``3m 10s``, ``2h 5m``, ``12d 4h``."""
    left = max(0, int(age_s))
    for index, (unit, seconds) in enumerate(UNITS):
        if left >= seconds:
            text = f"{left // seconds}{unit}"
            if index + 1 == len(UNITS):
                return text
            smaller, smaller_s = UNITS[index + 1]
            rest = left % seconds // smaller_s
            return f"{text} {rest}{smaller}" if rest else text
    return "0s"


def _since(text: str, now: datetime) -> str:
    try:
        return age_text((now - parse_time(text)).total_seconds()) if text else ""
    except DecodeError:
        return ""


def _text(text: str) -> Text:
    return Text(plain(text))


def _in_ascii(line: Text) -> Text:
    copy = line.copy()
    copy.plain = "".join(ASCII_MARKS.get(one, one) for one in line.plain)
    return copy
