"""What a type checker says of plugins. Checked by mypy and pyright, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from dagnats_worker import (
    BaseContext,
    Capability,
    Checkpointable,
    Client,
    Completed,
    DelayTask,
    EndTask,
    Outcome,
    Plugin,
    ReleaseTask,
    SkipTask,
    TaskContext,
    Worker,
    hookimpl,
)
from dagnats_worker.hookspecs import (
    CHECKPOINTS,
    Entry,
    KeyValue,
    Message,
    Source,
    Stats,
    TaskType,
    WorkerFacade,
    WorkerState,
)


@dataclass(frozen=True, slots=True)
class Hours:
    start: int = 22
    end: int = 6


class QuietHours(Plugin[Hours]):
    name = "quiet-hours"
    settings_type = Hours
    before = ("*",)

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        assert_type(self.settings, Hours)
        assert_type(self.settings.start, int)
        self.settings.begin  # type: ignore[attr-defined]  # noqa: B018 - misspelt on purpose
        raise DelayTask(timedelta(hours=1))

    @hookimpl
    @asynccontextmanager
    async def task_scope(self, ctx: TaskContext) -> AsyncIterator[None]:
        yield
        assert_type(ctx.outcome, Outcome | None)

    @hookimpl
    @contextmanager
    def child_scope(self, carrier: dict[str, str]) -> Iterator[None]:
        yield

    @hookimpl
    def on_error(self, error: BaseException) -> Outcome | None:
        return Completed() if isinstance(error, TimeoutError) else None

    @hookimpl
    async def pre_publish(self, ctx: TaskContext | None, message: Message) -> None:
        assert_type(message.headers, dict[str, str])
        message.headers["X-Hours"] = str(self.settings.start)
        message.headers["X-Hours"] = self.settings.start  # type: ignore[assignment]  # a text

    @hookimpl
    async def open_source(self, worker: WorkerFacade, task: TaskType) -> Source | None:
        assert_type(task.timeout, timedelta)
        assert_type(task.group, str | None)
        return None


async def hooks_can_be_called_as_they_are(plugin: QuietHours, ctx: TaskContext) -> None:
    async with plugin.task_scope(ctx):
        await plugin.pre_handle(ctx)
    with plugin.child_scope({}):
        assert_type(plugin.on_error(ValueError()), Outcome | None)
    await plugin.pre_handle()  # type: ignore[call-arg]  # the context is missing


def settings_are_of_their_type() -> None:
    QuietHours()
    QuietHours(Hours(start=20))
    QuietHours({"start": 20})  # type: ignore[arg-type]  # a Hours
    Worker(plugins=[QuietHours(), QuietHours(Hours())])
    Client(plugins=[QuietHours()])
    Worker(plugins=[QuietHours])  # type: ignore[list-item]  # an instance
    Worker(plugins="quiet-hours")  # type: ignore[arg-type]  # an instance


class Store:
    async def checkpoint(self, state: object) -> None: ...
    async def load_checkpoint(self) -> bytes | None: ...
    async def pause(self, name: str, duration: timedelta) -> None: ...
    @property
    def resumed_from(self) -> str | None: ...


class HalfAStore:
    async def checkpoint(self, state: object) -> None: ...


NUMBER: Capability[int] = Capability("number", install="dagnats-number")


def capabilities_are_provided_in_their_type(worker: WorkerFacade) -> None:
    def number(ctx: BaseContext) -> int:
        return ctx.attempt

    worker.provide(NUMBER, number)
    worker.provide(CHECKPOINTS, lambda ctx: Store())
    worker.provide(NUMBER, lambda ctx: "text")  # type: ignore[arg-type, return-value]  # a number
    worker.provide(CHECKPOINTS, lambda ctx: HalfAStore())  # type: ignore[arg-type, return-value]  # half
    store: Checkpointable = Store()
    del store


async def facade_is_typed(worker: WorkerFacade) -> None:
    assert_type(worker.worker_id, str)
    assert_type(worker.task_types, tuple[TaskType, ...])
    assert_type(worker.state, WorkerState)
    assert_type(worker.stats(), Stats)
    await worker.wait_for("running")
    await worker.wait_for("paused")  # type: ignore[arg-type]  # no such state

    async def background() -> None: ...

    end = worker.spawn(background, "background")
    await end()
    worker.spawn(background(), "background")  # type: ignore[arg-type]  # the function itself

    bucket = worker.kv("workers")
    assert_type(bucket, KeyValue)
    assert_type(await bucket.get("key"), Entry | None)
    assert_type(await bucket.put("key", b"1", expected_revision=0), int)
    await bucket.put("key", "1")  # type: ignore[arg-type]  # bytes


def control_flow_says_what_happens() -> None:
    assert_type(EndTask(Completed()).outcome, Outcome)
    assert_type(DelayTask(timedelta(1)).delay, timedelta)
    assert_type(SkipTask("done elsewhere").reason, str)
    ReleaseTask(Completed())
    EndTask("completed")  # type: ignore[arg-type]  # an outcome
    DelayTask(60)  # type: ignore[arg-type]  # a timedelta
    SkipTask()  # type: ignore[call-arg]  # a reason
