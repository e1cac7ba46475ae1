"""Exactly one outcome per execution, and only one that a reader of the history can read.

Method: a real server and real workers; handlers that record too much, too late, or what is not an
outcome at all. Fake: the engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import publish_task, unique
from worker_support import (
    MANAGED,
    event_types,
    outcome,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import (
    Completed,
    Continued,
    EmbeddedServer,
    EndTask,
    Failed,
    Paused,
    Plugin,
    Released,
    ReleaseTask,
    RetryAfterError,
    TaskContext,
    UsageError,
    hookimpl,
)


def named(value: Any) -> str:
    """A name that is the same in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


# ------------------------------------------------------------------------- what is not JSON


@pytest.mark.parametrize(
    "value",
    [math.nan, {"a": [math.inf]}, b"not json", b'"\xff"', "\ud800", object(), {"a": object()}],
    ids=named,
)
@pytest.mark.parametrize("way", ["returned", "recorded"])
async def test_output_that_is_not_json_is_a_permanent_failure_and_nothing_else_is_published(
    shared_server: EmbeddedServer, js: JetStreamContext, value: Any, way: str
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> Any:
        if way == "returned":
            return value
        ctx.complete(value)
        return None

    async with serving(shared_server.url, task_type, handler):
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
    failure_type, text = event.failure
    assert failure_type == "non_retriable"
    assert "JSON" in text


# ------------------------------------------------------------------------- exactly one outcome


async def record_twice(ctx: TaskContext) -> None:
    ctx.complete({"first": True})
    with pytest.raises(UsageError):
        ctx.fail_permanent("second")


async def record_twice_unguarded(ctx: TaskContext) -> None:
    ctx.complete({"first": True})
    ctx.complete({"second": True})


async def record_and_raise(ctx: TaskContext) -> None:
    ctx.complete({"first": True})
    raise RuntimeError("too late")


async def record_and_return(ctx: TaskContext) -> str:
    ctx.complete({"first": True})
    return "ignored"


async def record_and_exit(ctx: TaskContext) -> None:
    ctx.complete({"first": True})
    raise SystemExit(1)


@pytest.mark.parametrize(
    "handler",
    [
        record_twice,
        record_twice_unguarded,
        record_and_raise,
        record_and_return,
        record_and_exit,
    ],
)
async def test_first_recorded_outcome_stands(
    shared_server: EmbeddedServer,
    js: JetStreamContext,
    caplog: pytest.LogCaptureFixture,
    handler: Callable[[TaskContext], Any],
) -> None:
    task_type, run_id = unique(), unique()
    async with serving(shared_server.url, task_type, handler):
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
    assert (event.type, event.body["payload"]) == ("step.completed", {"first": True})
    assert [record.levelname for record in caplog.records if record.name == "dagnats_worker.task"]


async def test_pause_and_then_an_exception_is_a_pause(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        if ctx.deliveries == 1:
            ctx.record(Paused("nap", timedelta(milliseconds=50)))
            raise RuntimeError("too late")

    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, handler),
    ):
        await publish_task(js, task_type, run_id, **MANAGED)
        await settled(js, task_type)
    assert acks.verdicts == [b'-NAK {"delay": 50000000}', b"+ACK"]
    assert await event_types(js, run_id) == [
        "step.started",
        "step.released",
        "step.started",
        "step.completed",
    ]


# ------------------------------------------------------------------------- what is no outcome

NO_OUTCOMES: list[Any] = [None, "done", Completed]
MALFORMED: list[Any] = [
    Completed("text"),  # type: ignore[arg-type]  # the mistake that is tried
    Completed(b"not json"),
    Continued(b'{"a": NaN}'),
    Failed(None, "retriable"),  # type: ignore[arg-type]  # the same
    Failed("no", "sometimes"),  # type: ignore[arg-type]  # the same
    Failed("no", "retry_after", 5),  # type: ignore[arg-type]  # the same
    Paused("nap", 5),  # type: ignore[arg-type]  # the same
    Released("drain", 5),  # type: ignore[arg-type]  # the same
    Released(None),  # type: ignore[arg-type]  # the same
]


@pytest.mark.parametrize(
    ("way", "malformed"),
    [("recorded", one) for one in NO_OUTCOMES + MALFORMED]
    + [("released", one) for one in MALFORMED],
    ids=named,
)
async def test_what_is_no_outcome_is_a_permanent_failure_of_the_task_and_no_more(
    shared_server: EmbeddedServer, js: JetStreamContext, way: str, malformed: Any
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        if way == "released":
            raise ReleaseTask(malformed)
        ctx.record(malformed)

    async with serving(shared_server.url, task_type, handler) as worker:
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
        assert worker.state == "running"
    assert (event.type, event.failure[0]) == ("step.failed", "non_retriable")
    assert "outcome" in event.failure[1] or "JSON" in event.failure[1]


class Answers(Plugin[None]):
    """Ends tasks, or answers failures, with what it was given."""

    name = "answers"

    def __init__(self, *, hook: str, answer: Any) -> None:
        super().__init__()
        self._hook = hook
        self._answer = answer

    @hookimpl
    def pre_handle(self, ctx: TaskContext) -> None:
        if self._hook == "pre_handle" and ctx.deliveries == 1:
            raise EndTask(self._answer)

    @hookimpl
    def on_error(self) -> Any:
        return self._answer if self._hook == "on_error" else None


@pytest.mark.parametrize("hook", ["pre_handle", "on_error"])
@pytest.mark.parametrize("malformed", NO_OUTCOMES[1:] + MALFORMED, ids=named)
async def test_plugin_that_answers_with_no_outcome_does_not_take_the_worker_down(
    shared_server: EmbeddedServer, js: JetStreamContext, malformed: Any, hook: str
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        raise OSError("of the handler")

    plugins = [Answers(hook=hook, answer=malformed)]
    async with serving(shared_server.url, task_type, handler, plugins=plugins) as worker:
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
        assert worker.state == "running"
    assert event.failure == ("retriable", "of the handler")


class HalfMadeError(RetryAfterError):
    def __init__(self, delay: Any) -> None:
        Exception.__init__(self, "half made")
        if delay is not None:
            self.delay = delay


@pytest.mark.parametrize("delay", [None, 5])
async def test_retry_after_error_without_a_proper_delay_is_one_with_the_shortest(
    shared_server: EmbeddedServer, js: JetStreamContext, delay: Any
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        raise HalfMadeError(delay)

    async with serving(shared_server.url, task_type, handler):
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
    assert event.body["payload"] == {
        "error": "half made",
        "failure_type": "retry_after",
        "retry_after_ms": 100,
    }
