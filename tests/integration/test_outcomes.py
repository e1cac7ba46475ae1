"""How a task ends: exactly one outcome, whatever its handler does.

Method: a real server and real workers; what the history, the work queue and the dead letters then
hold is read back. Fake: the engine, whose tasks these tests dispatch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import process_handlers
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique
from worker_support import (
    MANAGED,
    configured,
    event_types,
    history,
    outcome,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import (
    EmbeddedServer,
    NonRetryableError,
    RetryAfterError,
    SyncTaskContext,
    TaskContext,
    UsageError,
)

INPUT: dict[str, Any] = {**MANAGED, "input": {"a": 1}}


class OddError(BaseException):
    """What only programs that end themselves raise."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("this error cannot be shown")

    __repr__ = __str__


def raising(error: BaseException) -> Callable[[TaskContext], Any]:
    async def handler(ctx: TaskContext) -> None:
        raise error

    return handler


def raising_in_a_thread(error: BaseException) -> Callable[[SyncTaskContext], Any]:
    def handler(ctx: SyncTaskContext) -> None:
        raise error

    return handler


# ------------------------------------------------------------------------- what handlers raise


@pytest.mark.parametrize("make", [raising, raising_in_a_thread])
@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        OddError("odd"),
        StopIteration(),
        RuntimeError(),
        MuteError(),
        ExceptionGroup("both", [OSError("a"), ValueError("b")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_a_retriable_failure_and_the_worker_goes_on(
    shared_server: EmbeddedServer,
    js: JetStreamContext,
    make: Callable[[BaseException], Any],
    error: BaseException,
) -> None:
    task_type = unique()
    async with serving(shared_server.url, task_type, make(error)) as worker:
        for run_id in (unique(), unique()):
            await publish_task(js, task_type, run_id, **MANAGED)
            event = await outcome(js, task_type, run_id)
            failure_type, text = event.failure
            assert (event.type, failure_type) == ("step.failed", "retriable")
            assert type(error).__name__ in text or str(error) in text
        assert worker.stats().failed == 2
        assert worker.state == "running"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NonRetryableError("no"), {"failure_type": "non_retriable", "error": "no"}),
        (
            RetryAfterError("later", timedelta(seconds=-1)),
            {"failure_type": "retry_after", "error": "later", "retry_after_ms": 100},
        ),
        (OSError("refused"), {"failure_type": "retriable", "error": "refused"}),
        (UsageError("wrong"), {"failure_type": "non_retriable", "error": "wrong"}),
    ],
)
async def test_failure_of_a_managed_run_is_published_and_acked_and_never_given_back(
    shared_server: EmbeddedServer,
    nc: Client,
    js: JetStreamContext,
    error: Exception,
    expected: dict[str, Any],
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        raise RuntimeError("wrapped") from error

    handlers = handler if isinstance(error, NonRetryableError | RetryAfterError) else raising(error)
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, handlers),
    ):
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
    assert event.body["payload"] == expected
    assert acks.verdicts == [b"+ACK"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "RuntimeError"),
        ("\x1b[31mred\x1b[0m\a", "\ufffd[31mred\ufffd[0m\ufffd"),
        ("two\nlines", "two\nlines"),
        ("half \ud800 a pair", "half \ufffd a pair"),
    ],
)
async def test_error_text_is_never_empty_and_has_nothing_that_breaks_a_reader(
    shared_server: EmbeddedServer, js: JetStreamContext, text: str, expected: str
) -> None:
    task_type, run_id = unique(), unique()
    async with serving(shared_server.url, task_type, raising(RuntimeError(text))):
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
    assert event.failure == ("retriable", expected)


async def test_error_text_of_100_kb_is_cut(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    async with serving(shared_server.url, task_type, raising(RuntimeError("ä" * 50_000))):
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
    assert event.failure == ("retriable", "ä" * 2048)


# ------------------------------------------------------------------------- time is over


async def test_async_handler_is_cancelled_when_its_time_is_over(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    told: list[bool] = []

    async def handler(ctx: TaskContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append(ctx.cancelled.is_set())

    async with serving(
        shared_server.url, task_type, handler, timeout=timedelta(seconds=0.1)
    ) as worker:
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
        await eventually(lambda: worker.stats().slots_in_use == 0)
    assert event.failure == ("retriable", "timeout after 0.1 s")
    assert told == [True]


async def test_process_handler_is_killed_when_its_time_is_over(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    async with serving(
        shared_server.url,
        task_type,
        process_handlers.process_id_later,
        executor="process",
        timeout=timedelta(seconds=0.2),
    ) as worker:
        await publish_task(js, task_type, run_id, input=60, **MANAGED)
        event = await outcome(js, task_type, run_id)
        assert worker.stats().abandoned == 0
    assert event.failure == ("retriable", "timeout after 0.2 s")


async def test_thread_that_outlives_its_time_keeps_its_slot_until_it_ends(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    let_go: list[bool] = []

    def handler(ctx: SyncTaskContext) -> None:
        while ctx.input and not let_go:
            ctx.cancelled.wait(0.01)

    async with serving(
        shared_server.url, task_type, handler, timeout=timedelta(seconds=0.1), concurrency=1
    ) as worker:
        await publish_task(js, task_type, run_id, **INPUT)
        event = await outcome(js, task_type, run_id)
        assert event.failure == ("retriable", "timeout after 0.1 s")
        assert (worker.stats().abandoned, worker.stats().slots_in_use) == (1, 1)
        second = unique()
        await publish_task(js, task_type, second, **MANAGED)
        let_go.append(True)
        await settled(js, task_type)
        await eventually(lambda: worker.stats().slots_in_use == 0)
        assert worker.stats().abandoned == 0
    assert await event_types(js, second) == ["step.started", "step.completed"]


# ------------------------------------------------------------------------- the connection


async def test_outcome_is_published_after_the_server_was_away(nats_server: EmbeddedServer) -> None:
    task_type, run_id = unique(), unique()
    restarted = asyncio.Event()
    runs: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        runs.append(ctx.deliveries)
        await restarted.wait()

    config = configured(publish_attempts=10, reconnect_wait=timedelta(seconds=0.1))
    async with serving(nats_server.url, task_type, handler, config=config):
        async with connected(nats_server.url) as client:
            await publish_task(client.jetstream(), task_type, run_id, **MANAGED)
            await eventually(lambda: runs)
        await asyncio.to_thread(nats_server.kill)
        restarted.set()
        await asyncio.to_thread(nats_server.restart)
        async with connected(nats_server.url) as client:
            js = client.jetstream()
            await settled(js, task_type)
            found = [event.type for event in await history(js, run_id)]
    assert runs == [1]
    assert found == ["step.started", "step.completed"]
