"""What a type checker says of the client. Checked by mypy and pyright, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal, assert_type

from dagnats_worker import (
    Client,
    EmbeddedServer,
    Run,
    RunEvent,
    RunStatus,
    StepStatus,
    TaskFailedError,
)
from dagnats_worker.testing import (
    Ack,
    MemoryServer,
    MemoryTransport,
    Nak,
    TaskResult,
    Term,
    WorkerHarness,
)


async def runs_are_submitted_and_followed() -> None:
    async with Client("nats://127.0.0.1:4222") as client:
        assert_type(client, Client)
        run = await client.submit("resize", {"width": 1}, group="gpu", stream=True)
        assert_type(run, Run)
        assert_type(run.run_id, str)
        assert_type(await run.result(timeout=timedelta(seconds=10)), Any)
        async for event in run.events():
            assert_type(event, RunEvent)
            assert_type(event.timestamp, datetime | None)
            assert_type(event.payload, Any)
        async for chunk in run.stream():
            assert_type(chunk, bytes)
        await run.cancel()
        assert_type(client.run("id"), Run)
        await client.submit(7)  # type: ignore[arg-type]  # the task type is a text
        await client.submit("resize", groups=["gpu"])  # type: ignore[call-arg]  # one group
        await run.result(timeout=10)  # type: ignore[arg-type]  # a timedelta
        run.result()  # type: ignore[unused-coroutine]  # nobody waits for it


async def engine_is_asked() -> None:
    async with Client() as client:
        run = await client.start_workflow("hello", {"name": "Ada"})
        assert_type(run, Run)
        status = await client.status(run.run_id)
        assert_type(status, RunStatus)
        assert_type(status.steps, dict[str, StepStatus])
        assert_type(status.outputs, dict[str, Any])
        await client.register_workflow({"name": "hello", "steps": []})
        await client.signal(run.run_id, "go", {"any": "data"})
        await client.start_workflow()  # type: ignore[call-arg]  # which one?
        await client.register_workflow("hello")  # type: ignore[arg-type]  # a definition


def failure_of_a_run_says_which(error: TaskFailedError) -> None:
    assert_type(error.run_id, str)
    assert_type(error.failure_type, Literal["retriable", "non_retriable", "retry_after"])


def server_is_embedded() -> None:
    with EmbeddedServer() as server:
        assert_type(server.url, str)
    EmbeddedServer(port="4222")  # type: ignore[arg-type]  # a number


async def tasks_are_run_in_tests() -> None:
    server = MemoryServer()
    Client(MemoryTransport(server))
    async with WorkerHarness({"resize": len}, server=server) as harness:
        result = await harness.run("resize", {"width": 1})
        assert_type(result, TaskResult)
        assert_type(result.verdict, Ack | Nak | Term)
        assert_type(result.output, Any)
        assert_type(result.error, str | None)
    WorkerHarness([len])  # type: ignore[arg-type]  # by task type
