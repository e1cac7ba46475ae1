"""What a running worker puts on the wire, against the golden vectors.

Method: a real server and a real worker with Go's message ids; for each vector of an event a task is
dispatched whose handler ends it that way, and what the history then holds is compared. Fake: the
engine, which is these tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique
from worker_support import (
    MANAGED,
    Found,
    configured,
    history,
    serving,
    settled,
    stored,
    watching_acks,
)

from dagnats_worker import EmbeddedServer, NonRetryableError, RetryAfterError, TaskContext

WIRE = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text("utf-8"))
RUN = "9f86d081884c7d659a2feaa0c55ad015"
WORKER = "worker-3c1f9a7be2d04c58"
TRACE = ("traceparent", "tracestate", "baggage")
FROM_GO = configured(go_ids=True)

DELAYS = {
    "event.failed_retry_after": timedelta(seconds=1.5),
    "event.failed_retry_after_floor": timedelta(milliseconds=20),
    "event.failed_retry_after_cap": timedelta(hours=2),
}

Vector = dict[str, Any]
Handler = Callable[[TaskContext], Awaitable[Any]]

EVENTS = [
    vector for vector in WIRE if vector["kind"] == "event" and vector["name"].startswith("event.")
]
TASKS = [
    vector for vector in WIRE if vector["kind"] == "task" and vector["subject"].startswith("task.")
]


def named(vectors: list[Vector]) -> pytest.MarkDecorator:
    assert vectors
    return pytest.mark.parametrize("vector", vectors, ids=[one["name"] for one in vectors])


def in_run(vector: Vector, run_id: str) -> Vector:
    """The vector as it looks in another run: the shared server remembers message ids."""
    moved: Vector = json.loads(json.dumps(vector).replace(RUN, run_id))
    return moved


def ending_as(vector: Vector) -> Handler:
    """A handler that ends its task as a vector says."""
    body = vector["body"]

    async def handler(ctx: TaskContext) -> Any:
        if body["type"] == "step.continue":
            ctx.continue_(body["payload"])
        elif body["type"] == "step.failed":
            raise failure(body["payload"]["error"], body["payload"]["failure_type"])
        elif body["type"] == "step.completed" and "payload" not in body:
            ctx.complete()
        else:
            return body.get("payload")
        return None

    def failure(error: str, failure_type: str) -> Exception:
        if failure_type == "retry_after":
            return RetryAfterError(error, DELAYS[vector["name"]])
        return NonRetryableError(error) if failure_type == "non_retriable" else OSError(error)

    return handler


async def dispatch(js: JetStreamContext, vector: Vector, task_type: str, run_id: str) -> None:
    """Publish the task whose event the vector is."""
    body, fields = vector["body"], dict(MANAGED)
    if vector["name"] != "event.started_first" and body.get("attempt_number", 0) > 1:
        fields["attempt"] = body["attempt_number"]
    message_id = vector["headers"]["Nats-Msg-Id"]
    if ".continue." in message_id:
        fields["iteration"] = int(message_id.split(".")[-2])
    trace = {name: vector["headers"][name] for name in TRACE if name in vector["headers"]}
    await publish_task(js, task_type, run_id, body["step_id"], headers=trace, **fields)


def comparable(message_id: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Without what depends on the clock, after a look at its form."""
    timestamp = body["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z", timestamp)
    if ".continue." in message_id:
        message_id, _, nonce = message_id.rpartition(".")
        assert nonce.isdecimal()
    return message_id, {**body, "timestamp": ""}


@named(EVENTS)
async def test_worker_writes_the_event_of_the_vector(
    shared_server: EmbeddedServer, js: JetStreamContext, vector: Vector
) -> None:
    task_type, run_id = unique(), unique()
    vector = in_run(vector, run_id)
    async with serving(
        shared_server.url, task_type, ending_as(vector), config=FROM_GO, worker_id=WORKER
    ):
        await dispatch(js, vector, task_type, run_id)
        await settled(js, task_type)
    events = await history(js, run_id)
    assert len(events) == 2
    event = events[0 if vector["body"]["type"] == "step.started" else 1]
    expected = comparable(vector["headers"]["Nats-Msg-Id"], vector["body"])
    assert comparable(event.message_id, event.body) == expected
    assert event.headers == {**vector["headers"], "Nats-Msg-Id": event.message_id}
    assert list(event.body) == list(json.loads(vector["wire"]))


@named(TASKS)
async def test_worker_runs_the_task_of_the_vector(
    shared_server: EmbeddedServer, js: JetStreamContext, vector: Vector
) -> None:
    run_id, task_type = unique(), unique()
    vector = in_run(vector, run_id)
    body = vector["body"]
    seen: dict[str, Any] = {}

    async def handler(ctx: TaskContext) -> None:
        seen.update(
            run_id=ctx.run_id,
            step_id=ctx.step_id,
            attempt=ctx.attempt,
            iteration=ctx.iteration,
            metadata=dict(ctx.metadata),
            input=ctx.json(),
            has_input=bool(ctx.input),
        )

    async with serving(shared_server.url, task_type, handler):
        subject = f"task.{task_type}.{run_id}"
        await js.publish(subject, vector["wire"].encode(), headers=vector["headers"])
        await settled(js, task_type)
    assert seen == {
        "run_id": run_id,
        "step_id": body["step_id"],
        "attempt": body.get("attempt", 1),
        "iteration": body.get("iteration", 0),
        "metadata": body.get("metadata", {}),
        "input": body.get("input"),
        "has_input": "input" in body,
    }


async def test_trace_context_goes_out_on_every_message_as_it_came_in(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    trace = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "vendor=1",
        "baggage": "tenant=7",
    }
    chunks = await nc.subscribe(f"stream.{run_id}.>")
    await nc.flush()

    async def handler(ctx: TaskContext) -> None:
        await ctx.put_stream(b"chunk")
        ctx.continue_()

    async with serving(shared_server.url, task_type, handler, plugins=[]):
        await publish_task(js, task_type, run_id, headers=trace, iteration=1)
        chunk = await chunks.next_msg(timeout=10)
        next_task = await eventually(lambda: after(js, task_type, 2))
    assert chunk.headers == trace
    assert carried(next_task) == trace
    for event in (await history(js, run_id))[:2]:
        assert carried(event) == trace
        assert (event.body["trace_parent"], event.body["trace_state"]) == tuple(
            trace[name] for name in TRACE[:2]
        )


def carried(message: Found) -> dict[str, str]:
    return {name: value for name, value in message.headers.items() if name in TRACE}


async def after(js: JetStreamContext, task_type: str, iteration: int) -> Found | None:
    for task in await stored(js, "TASK_QUEUES", f"task.{task_type}.>"):
        if task.body.get("iteration", 0) >= iteration:
            return task
    return None


async def test_trace_context_in_the_body_goes_out_in_headers(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with serving(shared_server.url, task_type, ignore):
        await publish_task(js, task_type, run_id, traceparent=parent, tracestate="a=1")
        await settled(js, task_type)
    for event in await history(js, run_id):
        assert carried(event) == {"traceparent": parent, "tracestate": "a=1"}
        assert (event.body["trace_parent"], event.body["trace_state"]) == (parent, "a=1")


async def test_events_are_stored_before_the_task_is_acked(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    order: list[str] = []
    async with connected(shared_server.url) as watcher:
        for subject in (f"history.{run_id}", f"$JS.ACK.TASK_QUEUES.workers-{task_type}.>"):

            async def note(message: Any) -> None:
                order.append(
                    json.loads(message.data)["type"]
                    if message.subject.startswith("history")
                    else message.data.decode()
                )

            await watcher.subscribe(subject, cb=note)
        await watcher.flush()
        async with serving(shared_server.url, task_type, ignore):
            await publish_task(js, task_type, run_id)
            await eventually(lambda: "+ACK" in order)
    assert order == ["step.started", "step.completed", "+ACK"]


async def test_lease_of_a_long_handler_is_renewed_until_its_ack(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    async with watching_acks(nc, task_type) as acks:

        async def handler(ctx: TaskContext) -> None:
            await eventually(lambda: acks.frames.count(b"+WPI") >= 4)

        async with serving(
            shared_server.url, task_type, handler, ack_wait=timedelta(seconds=0.6)
        ) as worker:
            await publish_task(js, task_type, run_id)
            await settled(js, task_type)
            assert worker.stats().delivered == 1
    assert acks.verdicts == [b"+ACK"]


async def ignore(ctx: TaskContext) -> None:
    """Completes with JSON's null."""
