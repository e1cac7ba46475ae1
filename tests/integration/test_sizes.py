"""Nothing is sent that the server would refuse: it closes the connection that sends too much.

Method: a real server with a ``max_payload`` of 64 KiB. Fake: the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.js import JetStreamContext
from support import connected, publish_task, unique
from worker_support import (
    MANAGED,
    dead_letters,
    event_types,
    outcome,
    serving,
    settled,
)

from dagnats_worker import EmbeddedServer, NonRetryableError, TaskContext, TransportError, provision

MAX_PAYLOAD = 65536
BAGGAGE = {"baggage": "b" * 2000}


@pytest.fixture
async def small_server(server_installed: None) -> AsyncIterator[EmbeddedServer]:
    """A provisioned server of the test's own that takes little."""
    async with EmbeddedServer(config=f"max_payload: {MAX_PAYLOAD}\n") as server:
        async with connected(server.url) as client:
            await provision(client.jetstream())
        yield server


@pytest.fixture
async def small_js(small_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    async with connected(small_server.url) as client:
        yield client.jetstream()


@pytest.fixture(autouse=True)
def stays_connected(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Every test here fails when the server has closed a connection."""
    yield
    lost = [record for record in caplog.records if "connection to NATS lost" in record.message]
    assert lost == []


async def never(ctx: TaskContext) -> None:
    """Fails the test that runs it."""
    raise AssertionError(f"{ctx.task_id} is not to be run")


@pytest.mark.parametrize("way", ["returned", "recorded", "continued"])
async def test_output_that_is_too_large_is_a_permanent_failure_that_names_both_sizes(
    small_server: EmbeddedServer, small_js: JetStreamContext, way: str
) -> None:
    task_type, run_id = unique(), unique()
    text = "x" * MAX_PAYLOAD

    async def handler(ctx: TaskContext) -> str | None:
        if way == "returned":
            return text
        (ctx.complete if way == "recorded" else ctx.continue_)(text)
        return None

    async with serving(small_server.url, task_type, handler):
        await publish_task(small_js, task_type, run_id, **MANAGED)
        event = await outcome(small_js, task_type, run_id)
    failure_type, error = event.failure
    assert (event.type, failure_type) == ("step.failed", "non_retriable")
    assert str(MAX_PAYLOAD + 2) in error
    assert str(MAX_PAYLOAD) in error


async def test_output_just_below_the_limit_either_fits_or_fails_and_never_breaks_the_connection(
    small_server: EmbeddedServer, small_js: JetStreamContext
) -> None:
    task_type, step_id, run_ids = unique(), "s" * 1000, []

    async def handler(ctx: TaskContext, size: int) -> str:
        return "x" * size

    async with serving(small_server.url, task_type, handler):
        for below in range(0, 16_000, 500):
            run_ids.append(unique("r" * 200))
            fields = {"input": MAX_PAYLOAD - below, **MANAGED}
            await publish_task(small_js, task_type, run_ids[-1], step_id, headers=BAGGAGE, **fields)
        await settled(small_js, task_type)
    ends = [(await event_types(small_js, run_id))[1:] for run_id in run_ids]
    assert ends[0] == ["step.failed"]
    assert ends[-1] == ["step.completed"]
    assert ends == sorted(ends, reverse=True)


async def test_message_as_large_as_the_server_takes_is_kept_when_it_cannot_be_decoded(
    small_server: EmbeddedServer, small_js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    garbage = b"x" * MAX_PAYLOAD
    async with serving(small_server.url, task_type, succeed):
        await small_js.publish(f"task.{task_type}.r", garbage)
        await publish_task(small_js, task_type, run_id)
        await settled(small_js, task_type)
    (letter,) = await dead_letters(small_js, task_type)
    assert letter.data == garbage
    assert await event_types(small_js, run_id) == ["step.started", "step.completed"]


async def test_task_as_large_as_the_server_takes_is_kept_when_it_has_failed_for_good(
    small_server: EmbeddedServer, small_js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    envelope = len(f'{{"run_id":"{run_id}","step_id":"s","input":""}}')
    filler = "x" * (MAX_PAYLOAD - envelope)
    data = f'{{"run_id":"{run_id}","step_id":"s","input":"{filler}"}}'.encode()
    assert len(data) == MAX_PAYLOAD

    async def handler(ctx: TaskContext) -> None:
        raise NonRetryableError("no")

    async with serving(small_server.url, task_type, handler):
        await small_js.publish(f"task.{task_type}.{run_id}", data)
        await settled(small_js, task_type)
    (letter,) = await dead_letters(small_js, task_type)
    assert letter.subject == f"dead.{task_type}.{run_id}.s"
    assert letter.body["input"] == filler
    assert await event_types(small_js, run_id) == ["step.started", "step.failed"]


async def test_chunk_that_is_too_large_with_its_headers_is_an_error_at_the_call(
    small_server: EmbeddedServer, small_js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> str:
        await ctx.put_stream(b"x" * (MAX_PAYLOAD - 3000))
        with pytest.raises(TransportError, match=str(MAX_PAYLOAD)):
            await ctx.put_stream(b"x" * MAX_PAYLOAD)
        with pytest.raises(TransportError, match=str(MAX_PAYLOAD)):
            await ctx.put_stream(b"x" * (MAX_PAYLOAD - 1000))
        return "alive"

    async with serving(small_server.url, task_type, handler):
        await publish_task(small_js, task_type, run_id, headers=BAGGAGE)
        event = await outcome(small_js, task_type, run_id)
    assert event.body["payload"] == "alive"


async def succeed(ctx: TaskContext) -> None:
    """Completes with JSON's null."""
