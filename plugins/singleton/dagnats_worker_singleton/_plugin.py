"""The plugin: task types of which one handler runs at a time, and of which one worker is in charge.

A singleton is a partitioned group with one partition. Who owns it is in charge; the others wait
with their name in the group. The server gives out one message at a time, outcomes are published
only by who is still in charge, and the partitions plugin takes dead members out of the group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from dagnats_worker import Plugin, hookimpl
from dagnats_worker.errors import StartError
from dagnats_worker.hookspecs import Source, TaskType, WorkerFacade
from dagnats_worker_partitions import PartitionsPlugin, PartitionsSettings, open_member
from dagnats_worker_singleton._fencing import FENCING, fencing_for


@dataclass(frozen=True, slots=True)
class SingletonSettings:
    """How soon another worker takes over.

    Attributes:
        ack_wait: The lease of a task, for task types that have none of their own. A holder that is
            stopped, or cut off, for longer has lost its place. At least a second.
        lease: After this long without a sign of life a worker is taken out of the group. The first
            worker of a fleet decides, for singletons and partitions alike.
    """

    ack_wait: timedelta = timedelta(seconds=5)
    lease: timedelta = timedelta(seconds=15)

    def __post_init__(self) -> None:
        self.for_member()

    def for_member(self) -> PartitionsSettings:
        """The same, as the partitions plugin takes it; it checks the values too."""
        return PartitionsSettings(ack_wait=self.ack_wait, lease=self.lease)


@dataclass(frozen=True, slots=True)
class SingletonOptions:
    """What ``@worker.task`` takes on top.

    Attributes:
        singleton: At most one handler of this task type runs at any time, in the whole fleet.
    """

    singleton: bool = False


class SingletonPlugin(Plugin[SingletonSettings]):
    """Serves singletons; only one of the workers that do is in charge."""

    name = "singleton"
    settings_type = SingletonSettings
    task_options = SingletonOptions
    provides = (FENCING,)
    before = ("partitions",)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(FENCING, fencing_for(worker))
        yield

    @hookimpl
    async def open_source(self, worker: WorkerFacade, task: TaskType) -> Source | None:
        options: SingletonOptions = task.options(SingletonPlugin)
        if not options.singleton:
            return None
        _check_partitions(worker, task)
        return await open_member(
            worker,
            task,
            partitions=1,
            serial=True,
            fenced=True,
            settings=self.settings.for_member(),
        )


def _check_partitions(worker: WorkerFacade, task: TaskType) -> None:
    """Refuse a task type that is to be split and not to be split."""
    if not any(plugin.name == "partitions" for plugin in worker.plugins):
        return
    given = task.options(PartitionsPlugin)
    if given.partitions or given.ordered:
        raise StartError(
            f"task type {task.name!r} has singleton=True beside partitions or ordered; a singleton "
            "has one partition and keeps the order anyway, so leave the others out"
        )
