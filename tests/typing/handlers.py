"""What a type checker says of handlers and of workers. Checked by mypy and pyright, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

from tenacity import retry_if_exception_type, stop_after_attempt, wait_fixed

from dagnats_worker import (
    Handler,
    NonRetryableError,
    Retry,
    RetryAfterError,
    SyncTaskContext,
    TaskContext,
    TypedHandler,
    Worker,
    WorkerConfig,
    typed,
)
from dagnats_worker.hookspecs import WorkerState

worker = Worker("nats://127.0.0.1:4222", groups=["gpu"], max_tasks=8)


@dataclass
class Size:
    width: int


# A decorator leaves the function as it is, so it can be called and tested as before.


@worker.task("resize", concurrency=4, timeout=timedelta(minutes=2))
async def resize(ctx: TaskContext, size: Size) -> dict[str, int]:
    return {"width": size.width}


@worker.task("shout")
def shout(text: str) -> str:
    return text.upper()


@worker.task("block")
def block(ctx: SyncTaskContext, size: Size) -> None: ...


class Service:
    async def method(self, ctx: TaskContext) -> int:
        return 1


async def decorated_functions_keep_their_signatures(ctx: TaskContext) -> None:
    assert_type(await resize(ctx, Size(1)), dict[str, int])
    assert_type(shout("hello"), str)
    shout(1)  # type: ignore[arg-type]  # a text
    await resize(ctx)  # type: ignore[call-arg]  # the size is missing
    await resize(ctx, 1)  # type: ignore[arg-type]  # a Size
    length: int = shout("hello")  # type: ignore[assignment]  # a text
    del length


def handlers_are_registered_in_every_shape() -> None:
    worker.handle("a", resize)
    worker.handle("b", shout)
    worker.handle("c", Service().method)
    worker.handle("d", lambda ctx: None)
    worker.handle_typed("e", resize)
    worker.handle_singleton("f", resize)
    worker.handle("g", "resize")  # type: ignore[arg-type]  # a function, not its name
    worker.handle(resize)  # type: ignore[arg-type, call-arg]  # the task type is missing
    worker.task(resize)  # type: ignore[arg-type]  # the decorator takes the task type


# The types of the seed's handlers.


async def raw(ctx: TaskContext) -> None:
    ctx.complete({"echo": ctx.json()})


async def other_context(ctx: SyncTaskContext) -> None: ...
async def other_input(ctx: TaskContext, size: int) -> dict[str, int]:
    return {}


def not_async(ctx: TaskContext) -> None: ...


raw_handler: Handler = raw
sized_handler: TypedHandler[Size, dict[str, int]] = resize
wrong_input: TypedHandler[Size, dict[str, int]] = other_input  # type: ignore[assignment]  # an int
wrong_output: TypedHandler[Size, str] = resize  # type: ignore[assignment]  # a dict
wrong_context: Handler = other_context  # type: ignore[assignment]  # the blocking one
wrong_kind: Handler = not_async  # type: ignore[assignment]  # nothing to await


# The mark of a typed handler can be called like the function.


@typed
async def marked(ctx: TaskContext, size: Size) -> int:
    return size.width


@typed
def marked_and_blocking(size: Size) -> int:
    return size.width


async def marked_functions_keep_their_signatures(ctx: TaskContext) -> None:
    assert_type(await marked(ctx, Size(1)), int)
    assert_type(marked_and_blocking(Size(1)), int)
    marked_and_blocking("1")  # type: ignore[arg-type]  # a Size
    original: Callable[[Size], int] = marked_and_blocking.function
    del original


# The worker.


def connections_are_urls_or_clients() -> None:
    Worker()
    Worker("nats://a:4222")
    Worker(["nats://a:4222", "nats://b:4222"])
    Worker(config=WorkerConfig(drain_timeout=timedelta(seconds=10)))
    Worker(config=Path("dagnats-worker.toml"))
    Worker(4222)  # type: ignore[arg-type]  # a URL
    Worker("nats://a:4222", "gpu")  # type: ignore[call-arg]  # options have names
    Worker(max_task=1)  # type: ignore[call-arg]  # misspelt
    Worker(max_tasks="8")  # type: ignore[arg-type]  # a number
    WorkerConfig(drain_timeout=30)  # type: ignore[arg-type]  # a timedelta
    WorkerConfig(drain_timout=timedelta(1))  # type: ignore[call-arg]  # misspelt


async def worker_is_started_and_stopped() -> None:
    async with Worker() as running:
        assert_type(running, Worker)
        assert_type(running.stats().completed, int)
        assert_type(running.task_types, tuple[str, ...])
    await worker.start()
    await worker.stop(timedelta(seconds=5))
    await worker.stop(5)  # type: ignore[arg-type]  # a timedelta
    stopping: Awaitable[None] = worker.stop()
    await stopping
    assert_type(worker.state, WorkerState)
    worker.run()


def policies_speak_tenacity() -> None:
    Retry()
    Retry(stop=stop_after_attempt(3), wait=wait_fixed(1), retry=retry_if_exception_type(OSError))
    Retry(stop=stop_after_attempt(3) | stop_after_attempt(2), wait=wait_fixed(1) + wait_fixed(2))
    Retry(stop=3)  # type: ignore[arg-type]  # a strategy
    Retry(attempts=3)  # type: ignore[call-arg]  # no such option


def errors_carry_what_they_need(cause: Exception) -> None:
    assert_type(RetryAfterError("busy", timedelta(seconds=3)).delay, timedelta)
    NonRetryableError("never")
    NonRetryableError(cause)
    RetryAfterError("busy")  # type: ignore[call-arg]  # when?
    RetryAfterError("busy", 3)  # type: ignore[arg-type]  # a timedelta
    NonRetryableError(404)  # type: ignore[arg-type]  # an exception or a text


async def any_value_can_be_returned(ctx: TaskContext) -> Any:
    return {"any": "thing"}


worker.handle("any", any_value_can_be_returned)
