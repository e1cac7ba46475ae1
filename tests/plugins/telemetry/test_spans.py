"""The spans of a task: names, kinds, attributes and errors, on every path.

Method: tasks are run through a worker, and its spans are read from memory. Real: worker, plugin,
OpenTelemetry SDK. Fake: the NATS server, which is in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from telemetry_support import REMOTE_SPAN, TRACE_ID, TRACEPARENT, Traces, ids, traceparent_of

from dagnats_worker import (
    Client,
    Completed,
    DelayTask,
    EndTask,
    NonRetryableError,
    Outcome,
    Plugin,
    RetryAfterError,
    TaskContext,
    Worker,
    WorkerConfig,
    hookimpl,
)
from dagnats_worker.hookspecs import Message
from dagnats_worker.testing import MemoryServer, MemoryTransport, WorkerHarness
from dagnats_worker_telemetry import TaskFilter, TelemetryPlugin

QUICK = WorkerConfig(publish_timeout=timedelta(seconds=1), publish_attempts=2)
HISTORY = "WORKFLOW_HISTORY"


def harness(traces: Traces, handler: Callable[..., Any], *more: Plugin[Any]) -> WorkerHarness:
    return WorkerHarness({"greet": handler}, plugins=[traces.plugin(), *more], config=QUICK)


async def hello(ctx: TaskContext) -> str:
    return "hello"


async def test_task_is_a_server_span_with_the_names_of_the_go_worker() -> None:
    traces = Traces()
    async with harness(traces, hello) as h:
        result = await h.run("greet", step_id="first", workflow_name="welcome")
    span = traces.one("executeTask greet")
    assert span.kind is SpanKind.SERVER
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "dagnats/worker"
    assert not span.instrumentation_scope.version
    assert (
        dict(span.attributes or {}).items()
        >= {
            "run_id": result.run_id,
            "step_id": "first",
            "task_name": "greet",
            "workflow_name": "welcome",
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": f"task.greet.{result.run_id}",
            "messaging.destination.template": "task.greet.{run_id}",
            "messaging.message.conversation_id": result.run_id,
            "messaging.client.id": h.worker.worker_id,
            "dagnats.attempt": 1,
            "dagnats.deliveries": 1,
            "dagnats.outcome": "completed",
        }.items()
    )
    assert span.status.status_code is StatusCode.UNSET


async def test_workflow_name_is_there_only_where_the_task_has_one() -> None:
    traces = Traces()
    async with harness(traces, hello) as h:
        await h.run("greet")
    assert "workflow_name" not in (traces.one("executeTask greet").attributes or {})


async def test_completed_task_has_a_span_of_its_outcome() -> None:
    traces = Traces()
    async with harness(traces, hello) as h:
        result = await h.run("greet")
    span = traces.one("worker.complete")
    assert span.kind is SpanKind.INTERNAL
    assert span.attributes == {
        "run_id": result.run_id,
        "step_id": "greet",
        "output_size_bytes": len('"hello"'),
    }
    assert traces.parents() == {"worker.complete": "executeTask greet", "executeTask greet": ""}


async def test_turn_of_a_loop_has_a_span_of_its_outcome() -> None:
    async def think(ctx: TaskContext) -> None:
        ctx.continue_(1)

    traces = Traces()
    async with harness(traces, think) as h:
        await h.run("greet", iteration=3, workflow_name="loop")
    attributes = traces.one("worker.continue").attributes or {}
    assert attributes["iteration"] == 3
    assert (traces.one("executeTask greet").attributes or {})["dagnats.iteration"] == 3


FAILURES = [
    (ValueError("no"), "worker.fail", None, "ValueError"),
    (
        NonRetryableError("never"),
        "worker.failPermanent",
        "non_retriable",
        "dagnats_worker.errors.NonRetryableError",
    ),
    (
        RetryAfterError("later", timedelta(seconds=1)),
        "worker.failRetryAfter",
        "retry_after",
        "dagnats_worker.errors.RetryAfterError",
    ),
]


@pytest.mark.parametrize(("error", "name", "failure_type", "error_type"), FAILURES)
@pytest.mark.parametrize("workflow", ["welcome", ""])
async def test_error_is_recorded_once_with_a_status(
    error: Exception, name: str, failure_type: str | None, error_type: str, workflow: str
) -> None:
    """With an engine, which is told of the failure, and without one, where the task comes again."""

    async def fail(ctx: TaskContext) -> None:
        raise error

    traces = Traces()
    async with harness(traces, fail) as h:
        await h.run("greet", workflow_name=workflow)
    task, outcome = traces.one("executeTask greet"), traces.one(name)
    assert ids(outcome)[1] == ids(task)[0]
    for span in (task, outcome):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == str(error)
    (event,) = [event for span in traces.spans for event in span.events]
    assert event.name == "exception"
    assert event in task.events
    attributes = event.attributes or {}
    assert (attributes["exception.type"], attributes["exception.message"]) == (
        error_type,
        str(error),
    )
    assert "test_spans.py" in str(attributes["exception.stacktrace"])
    assert (task.attributes or {})["error.type"] == error_type
    assert (outcome.attributes or {})["error"] == str(error)
    assert (outcome.attributes or {}).get("failure_type") == failure_type


async def test_failure_that_is_recorded_as_a_text_is_an_error_too() -> None:
    async def fail(ctx: TaskContext) -> None:
        ctx.fail_permanent("out of stock")

    traces = Traces()
    async with harness(traces, fail) as h:
        await h.run("greet")
    task = traces.one("executeTask greet")
    assert task.status.description == "out of stock"
    (event,) = task.events
    assert (event.attributes or {})["exception.message"] == "out of stock"
    assert traces.one("worker.failPermanent").status.description == "out of stock"


class Forgiving(Plugin[None]):
    name = "forgiving"

    @hookimpl
    def on_error(self, error: BaseException) -> Outcome | None:
        return Completed(b"0")


async def test_failure_that_a_plugin_has_replaced_is_no_error() -> None:
    async def fail(ctx: TaskContext) -> None:
        raise ValueError("no")

    traces = Traces()
    async with harness(traces, fail, Forgiving()) as h:
        assert (await h.run("greet")).output == 0
    assert traces.names == ["worker.complete", "executeTask greet"]
    assert {span.status.status_code for span in traces.spans} == {StatusCode.UNSET}
    assert not any(span.events for span in traces.spans)


class Delaying(Plugin[None]):
    name = "delaying"

    @hookimpl
    def pre_handle(self) -> None:
        raise DelayTask(timedelta(seconds=1))


class Ending(Plugin[None]):
    name = "ending"

    @hookimpl
    def pre_handle(self) -> None:
        raise EndTask(Completed(b'"known"'))


async def test_task_that_does_not_run_has_a_span_that_ends() -> None:
    traces = Traces()
    async with harness(traces, hello, Delaying()) as h:
        await h.run("greet")
    assert traces.names == ["executeTask greet"]
    assert traces.spans[0].status.status_code is StatusCode.UNSET


async def test_task_that_a_plugin_ends_has_a_span_of_its_outcome() -> None:
    traces = Traces()
    async with harness(traces, hello, Ending()) as h:
        await h.run("greet")
    assert traces.names == ["worker.complete", "executeTask greet"]


async def test_outcome_that_cannot_be_stored_is_an_error() -> None:
    traces = Traces()
    async with harness(traces, hello) as h:
        run = await h.submit("greet")
        h.faults.fail_publishes(20, "history.>")
        await h.settled(run.run_id)
        h.faults.clear()
    task = traces.one("executeTask greet")
    assert task.status.status_code is StatusCode.ERROR
    assert len(task.events) == 1


async def test_handler_that_a_drain_cuts_off_has_a_span_that_ends() -> None:
    begun = asyncio.Event()

    async def hang(ctx: TaskContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    traces = Traces()
    server = MemoryServer()
    worker = Worker(MemoryTransport(server), plugins=[traces.plugin()], config=QUICK)
    worker.handle("greet", hang)
    async with Client(MemoryTransport(server), plugins=[]) as client:
        await worker.start()
        await client.submit("greet")
        await begun.wait()
        await worker.stop(timedelta(0))
    (span,) = traces.spans
    assert (span.attributes or {})["dagnats.release.reason"] == "drain"
    assert span.status.status_code is StatusCode.UNSET
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_task_without_a_parent_is_a_root_whoever_has_started_the_worker() -> None:
    traces = Traces()
    with traces.tracer.start_as_current_span("main"):
        async with harness(traces, hello) as h:
            await h.run("greet")
            await h.run("greet", headers={"traceparent": "not one"})
    roots = [span for span in traces.spans if span.name == "executeTask greet"]
    assert [span.parent for span in roots] == [None, None]


async def test_task_is_the_child_of_what_its_headers_say() -> None:
    traces = Traces()
    async with harness(traces, hello) as h:
        await h.run("greet", headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
    span = traces.one("executeTask greet")
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}", ids(span)[1]) == (TRACE_ID, REMOTE_SPAN)
    assert span.context.trace_state.to_header() == "vendor=1"


async def test_task_is_the_child_of_what_its_body_says_where_it_has_no_headers() -> None:
    traces = Traces()
    async with harness(traces, hello) as h:
        await h.run("greet", traceparent=TRACEPARENT, tracestate="vendor=1")
    assert ids(traces.one("executeTask greet"))[1] == REMOTE_SPAN


async def test_span_that_nobody_records_still_says_that_nothing_is_recorded() -> None:
    traces = Traces(sampler=ALWAYS_OFF)
    async with harness(traces, hello) as h:
        result = await h.run("greet", headers={"traceparent": TRACEPARENT})
        sent = h.server.messages(HISTORY, f"history.{result.run_id}")
    assert traces.names == []
    for message in sent:
        version, trace_id, span_id, flags = message.headers["traceparent"].split("-")
        assert (version, trace_id, int(flags) & 1) == ("00", TRACE_ID, 0)
        assert span_id != REMOTE_SPAN


async def test_sampler_sees_which_task_it_is() -> None:
    class Looking(ParentBased):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(dict(kwargs.get("attributes") or args[4]))
            return super().should_sample(*args, **kwargs)

    seen: list[dict[str, Any]] = []
    traces = Traces(sampler=Looking(TraceIdRatioBased(1.0)))
    async with harness(traces, hello) as h:
        await h.run("greet")
    assert seen[0]["task_name"] == "greet"


class Broken(SpanProcessor):
    def on_start(self, span: Span, parent_context: Any = None) -> None:
        raise RuntimeError("no room for spans")


async def test_processor_that_raises_hurts_no_task(caplog: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    traces.provider.add_span_processor(Broken())
    async with harness(traces, hello) as h:
        for _ in range(20):
            assert (await h.run("greet")).output == "hello"


async def test_message_of_an_event_carries_the_span_of_its_task_and_not_that_of_its_outcome() -> (
    None
):
    traces = Traces()
    async with harness(traces, hello) as h:
        result = await h.run("greet")
        sent = h.server.messages(HISTORY, f"history.{result.run_id}")
    task = traceparent_of(traces.one("executeTask greet"))
    assert [message.headers["traceparent"] for message in sent] == [task, task]


async def test_one_plugin_serves_two_workers_and_a_client() -> None:
    traces, server = Traces(), MemoryServer()
    plugin = traces.plugin()

    async def ask(ctx: TaskContext) -> str:
        answer: str = await (await client.submit("answer")).result(timeout=timedelta(seconds=10))
        return answer

    asking = Worker(MemoryTransport(server), plugins=[plugin])
    asking.handle("ask", ask)
    answering = Worker(MemoryTransport(server), plugins=[plugin])
    answering.handle("answer", hello)
    async with Client(MemoryTransport(server), plugins=[plugin]) as client, asking, answering:
        assert await (await client.submit("ask")).result() == "hello"
    assert traces.parents() == {
        "enqueueTask ask": "",
        "executeTask ask": "enqueueTask ask",
        "enqueueTask answer": "executeTask ask",
        "executeTask answer": "enqueueTask answer",
        "worker.complete": "executeTask ask",
    }


class Outside(Plugin[None]):
    """Looks at what is there when the telemetry of a task has ended, and the task has not."""

    name = "outside"
    before = ("telemetry",)

    def __init__(self) -> None:
        super().__init__()
        self.left: list[tuple[bool, Any]] = []

    @hookimpl
    @asynccontextmanager
    async def task_scope(self) -> AsyncIterator[None]:
        yield
        record = logging.makeLogRecord({})
        TaskFilter().filter(record)
        current = trace.get_current_span().get_span_context().is_valid
        self.left.append((current, record.__dict__["run_id"]))


async def test_nothing_of_a_task_is_left_when_it_has_ended() -> None:
    traces, outside = Traces(), Outside()
    plugin = traces.plugin()
    async with WorkerHarness({"greet": hello}, plugins=[plugin, outside]) as h:
        result = await h.run("greet")
        assert outside.left == [(False, result.run_id)]
        assert not plugin._spans._active
    record = logging.makeLogRecord({})
    TaskFilter().filter(record)
    assert (record.__dict__["run_id"], record.__dict__["trace_id"]) == ("", "")


class Again(Plugin[None]):
    """Has an outcome announced twice, as it is where its id is taken."""

    name = "again"

    def __init__(self, telemetry: TelemetryPlugin) -> None:
        super().__init__()
        self._telemetry = telemetry

    @hookimpl
    @asynccontextmanager
    async def outcome_scope(self, ctx: TaskContext) -> AsyncIterator[None]:
        await self._telemetry.pre_publish(ctx, Message("history.x", {}, "step.completed"))
        yield


async def test_outcome_that_is_sent_again_has_one_span() -> None:
    traces = Traces()
    plugin = traces.plugin()
    async with WorkerHarness({"greet": hello}, plugins=[plugin, Again(plugin)]) as h:
        await h.run("greet")
    assert traces.names == ["worker.complete", "executeTask greet"]
