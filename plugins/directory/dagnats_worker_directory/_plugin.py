"""The plugin: lists its worker in the directory, from when it takes tasks until it has drained."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from dagnats_worker import Plugin, hookimpl
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_directory._heartbeat import Heartbeat
from dagnats_worker_directory._registration import WorkerRegistration, now_text
from dagnats_worker_directory._report import Report, is_reserved

EXPIRES_AFTER = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    """What a worker says of itself, and how often.

    Attributes:
        heartbeat: How often the entry is written; one that is a minute old counts no more.
        version: Of the program that the worker runs; empty for that of the core.
        metadata: What else is to be known of the worker, such as its zone.
    """

    heartbeat: timedelta = timedelta(seconds=30)
    version: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not timedelta(0) < self.heartbeat < EXPIRES_AFTER:
            raise ValueError(
                f"heartbeat is longer than zero and shorter than a minute, got {self.heartbeat!r}"
            )
        reserved = sorted(filter(is_reserved, self.metadata))
        if reserved:
            raise ValueError(
                f"metadata has {', '.join(map(repr, reserved))}, which the plugin writes itself; "
                "use another name"
            )


class DirectoryPlugin(Plugin[DirectorySettings]):
    """Keeps its worker listed; whatever fails meanwhile is logged and never stops the worker."""

    name = "directory"
    settings_type = DirectorySettings

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        heartbeat = Heartbeat(
            worker,
            registration_of(worker, self.settings),
            report_of(worker, self.settings),
            self.settings.heartbeat,
        )
        end_running = worker.spawn(heartbeat.run, "directory heartbeat")
        end_telling = worker.spawn(heartbeat.tell_drain, "directory drain")
        try:
            yield
        finally:
            await end_running()
            await end_telling()
            await heartbeat.end()


def registration_of(worker: WorkerFacade, settings: DirectorySettings) -> WorkerRegistration:
    """What does not change of an entry."""
    return WorkerRegistration(
        worker_id=worker.worker_id,
        task_types=tuple(sorted({one.name for one in worker.task_types})),
        max_tasks=worker.max_tasks,
        pid=os.getpid(),
        hostname=socket.gethostname() or "unknown",
        version=settings.version or worker.version,
    )


def report_of(worker: WorkerFacade, settings: DirectorySettings) -> Report:
    """What does not change of a worker's report."""
    return Report(
        groups=worker.groups,
        core=worker.version,
        python=platform.python_version(),
        started_at=now_text(),
        more=settings.metadata,
    )
