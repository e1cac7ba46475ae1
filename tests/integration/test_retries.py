"""Who tries a failed task again: the engine if there is one, else the task's own message.

Method: a real server; the acks that the worker sends are read along. Fake: the engine, which is the
snapshot and the marks that it would write.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import publish_task, unique
from tenacity import (
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_chain,
    wait_fixed,
)
from worker_support import (
    MANAGED,
    OtherWorker,
    configured,
    dead_letters,
    event_types,
    history,
    outcome,
    quick_retry,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import (
    DelayTask,
    EmbeddedServer,
    NonRetryableError,
    Paused,
    Plugin,
    Retry,
    RetryAfterError,
    TaskContext,
    hookimpl,
)

WIRE = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text("utf-8"))
LETTER = next(vector for vector in WIRE if vector["kind"] == "dead_letter")


def nak(delay_s: float) -> bytes:
    return b'-NAK {"delay": %d}' % round(delay_s * 1e9)


def failing(*errors: Exception) -> Callable[[TaskContext], Any]:
    """Fails with each error in turn, then completes with the number of the attempt."""

    async def handler(ctx: TaskContext) -> int:
        assert ctx.retry_count == ctx.attempt - 1
        if ctx.attempt <= len(errors):
            raise errors[ctx.attempt - 1]
        return ctx.attempt

    return handler


# ------------------------------------------------------------------------- without an engine


async def test_task_is_tried_again_with_the_waits_of_its_policy_until_it_succeeds(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    policy = Retry(stop=stop_after_attempt(4), wait=wait_chain(*map(wait_fixed, (0.05, 0.1, 0.15))))
    errors = [OSError("a"), OSError("b"), OSError("c")]
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, failing(*errors), retry=policy) as worker,
    ):
        await publish_task(js, task_type, run_id)
        await settled(js, task_type)
        assert (worker.stats().retried, worker.stats().completed) == (3, 1)
    assert acks.verdicts == [nak(0.05), nak(0.1), nak(0.15), b"+ACK"]
    events = await history(js, run_id)
    assert [event.type for event in events] == [
        *["step.started", "step.released"] * 3,
        "step.started",
        "step.completed",
    ]
    assert [event.body["attempt_number"] for event in events] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert events[1].body["payload"] == {"reason": "retry", "delay_ms": 50, "error": "a"}
    assert events[-1].body["payload"] == 4


async def test_task_that_has_used_up_its_attempts_fails_for_good_and_is_buried(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    errors = [OSError("connection refused")] * 9
    async with serving(shared_server.url, task_type, failing(*errors), retry=quick_retry(3)):
        await publish_task(js, task_type, run_id, "greet", input={"name": "Ada"})
        await settled(js, task_type)
    events = await history(js, run_id)
    assert [event.type for event in events].count("step.started") == 3
    assert events[-1].type == "step.failed"
    assert events[-1].failure == ("non_retriable", "connection refused")
    (letter,) = await dead_letters(js, task_type)
    vector = json.loads(
        json.dumps(LETTER)
        .replace("9f86d081884c7d659a2feaa0c55ad015", run_id)
        .replace("task.greet", f"task.{task_type}")
        .replace("dead.greet", f"dead.{task_type}")
    )
    assert letter.subject == vector["subject"]
    assert letter.headers == {**vector["headers"], "Dagnats-Dlq-Task": task_type}
    del vector["body"]["workflow_name"]  # it would have been the engine's then
    assert letter.body == vector["body"]


@pytest.mark.parametrize("wrapped", ["", "raised from it", "raised from what was raised from it"])
async def test_permanent_failure_is_not_tried_again(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext, wrapped: str
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        error = NonRetryableError("no")
        if not wrapped:
            raise error
        middle = ValueError("middle")
        middle.__cause__ = error
        raise RuntimeError("outer") from (middle if "what" in wrapped else error)

    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, handler, retry=quick_retry()),
    ):
        await publish_task(js, task_type, run_id)
        event = await outcome(js, task_type, run_id)
    assert event.failure == ("non_retriable", "no")
    assert acks.verdicts == [b"+ACK"]
    (letter,) = await dead_letters(js, task_type)
    assert letter.headers["Dagnats-Dlq-Attempts"] == "1"


async def test_retry_after_sets_the_delay_and_uses_up_an_attempt(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    later = RetryAfterError("later", timedelta(milliseconds=120))
    policy = quick_retry(3, wait_s=30)
    async with (
        watching_acks(nc, task_type) as acks,
        serving(shared_server.url, task_type, failing(*[later] * 9), retry=policy),
    ):
        await publish_task(js, task_type, run_id)
        await settled(js, task_type)
    assert acks.verdicts == [nak(0.12), nak(0.12), b"+ACK"]
    assert (await history(js, run_id))[-1].failure == ("non_retriable", "later")


@pytest.mark.parametrize("fields", [{}, MANAGED], ids=["no engine", "with an engine"])
@pytest.mark.parametrize(
    "predicate",
    [retry_if_exception_type(OSError), retry_if_exception(lambda error: "yes" in str(error))],
    ids=["by type", "by text"],
)
async def test_predicate_of_the_policy_says_what_can_be_tried_again(
    shared_server: EmbeddedServer, js: JetStreamContext, predicate: Any, fields: dict[str, Any]
) -> None:
    task_type, again, never = unique(), unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        raise OSError("yes") if ctx.run_id == again else KeyError("no")

    policy = quick_retry(2, retry=predicate)
    async with serving(shared_server.url, task_type, handler, retry=policy):
        for run_id in (again, never):
            await publish_task(js, task_type, run_id, **fields)
        await settled(js, task_type)
    assert await event_types(js, never) == ["step.started", "step.failed"]
    assert (await history(js, never))[-1].failure[0] == "non_retriable"
    starts = (await event_types(js, again)).count("step.started")
    failure_type = (await history(js, again))[-1].failure[0]
    assert (starts, failure_type) == ((1, "retriable") if fields else (2, "non_retriable"))


async def test_policy_can_stop_by_the_clock(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    policy = Retry(stop=stop_after_delay(0.3), wait=wait_fixed(0.1))
    async with serving(shared_server.url, task_type, failing(*[OSError("no")] * 99), retry=policy):
        await publish_task(js, task_type, run_id)
        await settled(js, task_type)
    types = await event_types(js, run_id)
    assert types[-1] == "step.failed"
    assert 2 <= types.count("step.started") <= 4


async def test_policy_that_raises_does_not_take_the_worker_down(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()

    def broken(error: BaseException) -> bool:
        raise AttributeError("no such thing")

    policy = quick_retry(retry=retry_if_exception(broken))
    async with serving(
        shared_server.url, task_type, failing(OSError("no")), retry=policy
    ) as worker:
        await publish_task(js, task_type, run_id, **MANAGED)
        event = await outcome(js, task_type, run_id)
        assert worker.state == "running"
    assert event.failure == ("retriable", "no")


# ------------------------------------------------------------------------- what is no attempt


class Delays(Plugin[None]):
    """Puts every task off twice."""

    name = "delays"

    def __init__(self) -> None:
        super().__init__()
        self.left = 2

    @hookimpl
    def pre_handle(self) -> None:
        if self.left:
            self.left -= 1
            raise DelayTask(timedelta(milliseconds=30))


async def test_pauses_delays_and_drains_are_no_attempts(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    attempts: list[tuple[str, int]] = []
    drained = asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        if not attempts:
            attempts.append(("paused", ctx.attempt))
            ctx.record(Paused("nap", timedelta(milliseconds=30)))
        elif len(attempts) == 1:
            attempts.append(("drained", ctx.attempt))
            drained.set()
            await asyncio.Event().wait()
        else:
            attempts.append(("failed", ctx.attempt))
            raise OSError("no")

    config = configured(drain_timeout=timedelta(milliseconds=50))
    options: dict[str, Any] = {"config": config, "retry": quick_retry(3)}
    await publish_task(js, task_type, run_id)
    async with serving(shared_server.url, task_type, handler, plugins=[Delays()], **options):
        await drained.wait()
    async with serving(shared_server.url, task_type, handler, **options):
        await settled(js, task_type)
    assert attempts == [
        ("paused", 1),
        ("drained", 1),
        ("failed", 1),
        ("failed", 2),
        ("failed", 3),
    ]
    (letter,) = await dead_letters(js, task_type)
    assert letter.headers["Dagnats-Dlq-Attempts"] == "3"
    assert letter.body["attempt"] == 3
    assert int(letter.headers["Dagnats-Dlq-Delivery-Count"]) == 7


@pytest.mark.parametrize(
    ("events", "fields", "attempt"),
    [
        ([], {}, 1),
        (["step.started"], {}, 2),
        (["step.started", "step.released retry"], {}, 2),
        (["step.started", "step.released pause"], {}, 1),
        (["step.started", "step.released delay", "step.started"], {}, 2),
        (["step.started", "step.released drain", "step.started", "step.released retry"], {}, 2),
        (["step.started", "step.released pause"], MANAGED, 2),
        (["step.started"], {"attempt": 4, **MANAGED}, 4),
    ],
)
async def test_attempt_is_what_the_history_of_the_dispatch_says(
    shared_server: EmbeddedServer,
    js: JetStreamContext,
    events: list[str],
    fields: dict[str, Any],
    attempt: int,
) -> None:
    task_type, run_id = unique(), unique()
    other = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id, **fields)
    message = await other.take_and_publish(*events)
    seen: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        seen.append(ctx.attempt)

    async with serving(shared_server.url, task_type, handler):
        await message.nak()
        await settled(js, task_type)
    assert seen == [attempt]
