"""Who runs which versions: of the core, of each plugin, and of workers in other languages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from dagnats_worker_directory._registration import WorkerRegistration
from dagnats_worker_directory._table import Column, plain, table

WHO_MAX = 3
CORE = "dagnats-worker"
PROGRAM = "(program)"
PYTHON = "python"


@dataclass(frozen=True, slots=True)
class Version:
    """The workers that run one version of one component.

    Attributes:
        odd: Others run another version, and they are more.
    """

    component: str
    version: str
    workers: tuple[str, ...]
    odd: bool


def versions(workers: Sequence[WorkerRegistration]) -> list[Version]:
    """Every version of every component, the one that most run first."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for worker in workers:
        for component, version in _components(worker):
            found[component][version].append(worker.worker_id)
    return [
        one for component, by_version in found.items() for one in _ordered(component, by_version)
    ]


def is_skewed(found: Sequence[Version]) -> bool:
    """Whether there is a component of which more than one version runs."""
    return any(one.odd for one in found)


def record(found: Sequence[Version]) -> dict[str, Any]:
    """The same for programs."""
    components: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        components.setdefault(one.component, []).append(
            {"version": one.version, "workers": list(one.workers), "odd": one.odd}
        )
    return {
        "skew": is_skewed(found),
        "components": [
            {"component": component, "versions": listed} for component, listed in components.items()
        ],
    }


def skew_lines(found: Sequence[Version], console: Console) -> list[Text]:
    """The lines of the table; what is odd stands out."""
    firsts = {one.component: one for one in reversed(found)}
    columns: list[Column[Version]] = [
        Column(
            "COMPONENT",
            lambda one: Text(plain(one.component) if firsts[one.component] is one else ""),
        ),
        Column(
            "VERSION", lambda one: Text(plain(one.version or "?"), "yellow" if one.odd else "green")
        ),
        Column("WORKERS", lambda one: Text(str(len(one.workers)))),
        Column("WHO", lambda one: Text(_who(one), "yellow" if one.odd else "dim")),
    ]
    return table(columns, found, width=console.width if console.is_terminal else None)


def _components(worker: WorkerRegistration) -> Iterator[tuple[str, str]]:
    report = worker.report
    if not report.core:
        yield f"{worker.language or 'unknown'} worker", worker.version
        return
    yield CORE, report.core
    yield PYTHON, report.python
    if worker.version != report.core:
        yield PROGRAM, worker.version
    yield from report.plugins.items()


def _ordered(component: str, by_version: dict[str, list[str]]) -> Iterator[Version]:
    """Those that most run first; of as many, the higher text, which is mostly the newer one."""
    ranked = sorted(by_version.items(), key=lambda item: (len(item[1]), item[0]), reverse=True)
    for place, (version, workers) in enumerate(ranked):
        yield Version(component, version, tuple(sorted(workers)), odd=place > 0)


def _who(one: Version) -> str:
    shown = ", ".join(map(plain, one.workers[:WHO_MAX]))
    more = len(one.workers) - WHO_MAX
    return f"{shown} and {more} more" if more > 0 else shown
