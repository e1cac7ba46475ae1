"""A plugin of somebody else, which does one of everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TextIO

from dagnats_worker import (
    BaseContext,
    Capability,
    Completed,
    DelayTask,
    EndTask,
    Failed,
    Outcome,
    Plugin,
    TaskContext,
    hookimpl,
)
from dagnats_worker.hookspecs import Message, WorkerFacade

__all__ = ["GREETER", "Greeter", "OutsideOptions", "OutsidePlugin", "OutsideSettings"]

SOON = timedelta(milliseconds=200)


@dataclass(frozen=True, slots=True)
class OutsideSettings:
    """Where it notes that it was opened and closed, and whom it greets how."""

    diary: Path | None = None
    greeting: str = "hello"


@dataclass(frozen=True, slots=True)
class OutsideOptions:
    """What is to be done with tasks of a type."""

    outside: Literal["", "veto", "delay"] = ""


class Greeter:
    """What handlers get."""

    def __init__(self, greeting: str, task_id: str) -> None:
        self._greeting = greeting
        self.task_id = task_id

    def greet(self, name: str) -> str:
        return f"{self._greeting} {name}"


GREETER: Capability[Greeter] = Capability("greeter", install="outside-plugin")


class OutsidePlugin(Plugin[OutsideSettings]):
    """Vetoes, delays, forgives, marks, holds, provides."""

    name = "outside"
    settings_type = OutsideSettings
    task_options = OutsideOptions
    provides = (GREETER,)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(GREETER, self._greeter)
        diary: TextIO | None = None
        if self.settings.diary is not None:
            diary = self.settings.diary.open("a")
            diary.write(f"opened by {worker.worker_id}\n")
        try:
            yield
        finally:
            if diary is not None:
                diary.write(f"closed after {worker.stats().completed}\n")
                diary.close()

    def _greeter(self, ctx: BaseContext) -> Greeter:
        return Greeter(self.settings.greeting, ctx.task_id)

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        options: OutsideOptions = ctx.options(OutsidePlugin)
        if options.outside == "veto":
            raise EndTask(Completed(b'"vetoed"'))
        if options.outside == "delay" and ctx.deliveries == 1:
            raise DelayTask(SOON)

    @hookimpl
    async def on_error(self, error: BaseException, outcome: Outcome) -> Outcome | None:
        if isinstance(outcome, Failed) and "busy" in str(error):
            return Failed(outcome.error, "retry_after", SOON)
        return None

    @hookimpl
    async def pre_publish(self, ctx: TaskContext | None, message: Message) -> None:
        if message.event_type:
            message.headers["Outside"] = message.event_type
