"""The context of a task goes into what it publishes, and into what its handler does, wherever.

Method: handlers on the loop, in threads and in processes start spans and publish; what they are
children of is read from memory and from the messages. Real: worker, client, plugin, OpenTelemetry
SDK, threads, processes. Fake: the NATS server, which is in memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import telemetry_handlers
from nats.aio.msg import Msg
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from support import connected, publish_task, unique
from telemetry_support import REMOTE_SPAN, TRACE_ID, TRACEPARENT, Traces, ids, traceparent_of
from worker_support import put_snapshot, serving, settled

from dagnats_worker import Client, EmbeddedServer, SyncTaskContext, TaskContext
from dagnats_worker.testing import MemoryServer, MemoryTransport, WorkerHarness
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings

TASKS = "TASK_QUEUES"
HISTORY = "WORKFLOW_HISTORY"
W3C = {"traceparent", "tracestate", "baggage"}
BOUND_S = 30


async def hello(ctx: TaskContext) -> str:
    return "hello"


def listening(server: MemoryServer) -> list[Mapping[str, str]]:
    """The headers of all chunks that are streamed from now on."""
    heard: list[Mapping[str, str]] = []
    server.listen("stream.>", lambda subject, data, headers: heard.append(headers))
    return heard


async def test_events_carry_the_span_of_the_task_in_headers_and_body() -> None:
    traces = Traces()
    async with WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as h:
        given = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "user=ada"}
        result = await h.run("greet", headers=given)
        sent = h.server.messages(HISTORY, f"history.{result.run_id}")
    expected = traceparent_of(traces.one("executeTask greet"))
    assert len(sent) == 2
    for message in sent:
        body = json.loads(message.data)
        assert message.headers["traceparent"] == body["trace_parent"] == expected
        assert message.headers["tracestate"] == body["trace_state"] == "vendor=1"
        assert message.headers["baggage"] == "user=ada"


@pytest.mark.parametrize("more", [{"tracestate": "vendor=1"}, {"baggage": "user=ada"}, {}])
async def test_events_carry_what_belongs_to_the_context(more: dict[str, str]) -> None:
    traces = Traces()
    async with WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as h:
        result = await h.run("greet", headers={"traceparent": TRACEPARENT, **more})
        sent = h.server.messages(HISTORY, f"history.{result.run_id}")
    expected = {"traceparent": traceparent_of(traces.one("executeTask greet")), **more}
    for message in sent:
        found = {name: message.headers[name] for name in message.headers if name in W3C}
        assert found == expected


class Forgetting(Sampler):
    """Keeps everything, and starts with a state of its own, which is none."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "forgetting"


async def test_state_that_the_sampler_has_dropped_is_not_handed_on() -> None:
    traces = Traces(sampler=Forgetting())
    given = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    async with WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as h:
        result = await h.run("greet", headers=given)
        sent = h.server.messages(HISTORY, f"history.{result.run_id}")
    assert not any("tracestate" in message.headers for message in sent)
    assert not any("trace_state" in json.loads(message.data) for message in sent)


async def test_next_turn_of_a_loop_is_a_child_of_this_one() -> None:
    async def think(ctx: TaskContext) -> None:
        if ctx.iteration:
            ctx.complete()
        else:
            ctx.continue_()

    traces = Traces()
    async with WorkerHarness({"think": think}, plugins=[traces.plugin()]) as h:
        run = await h.submit("think")
        await h.settled(run.run_id)
        await h.settled(run.run_id)
    first, second = [span for span in traces.spans if span.name == "executeTask think"]
    assert ids(second)[1] == ids(first)[0]


async def test_chunk_carries_the_span_that_the_handler_is_in() -> None:
    traces = Traces()

    async def stream(ctx: TaskContext) -> None:
        await ctx.put_stream(1)
        with traces.tracer.start_as_current_span("inner"):
            await ctx.put_stream(2)

    async with WorkerHarness({"greet": stream}, plugins=[traces.plugin()]) as h:
        heard = listening(h.server)
        await h.run("greet")
    assert [headers["traceparent"] for headers in heard] == [
        traceparent_of(traces.one("executeTask greet")),
        traceparent_of(traces.one("inner")),
    ]


async def test_chunk_from_a_blocking_handler_carries_the_span_of_its_thread() -> None:
    traces = Traces()

    def stream(ctx: SyncTaskContext) -> None:
        with traces.tracer.start_as_current_span("inner"):
            ctx.put_stream(1)

    async with WorkerHarness({"greet": stream}, plugins=[traces.plugin()]) as h:
        heard = listening(h.server)
        await h.run("greet")
    assert [headers["traceparent"] for headers in heard] == [traceparent_of(traces.one("inner"))]
    assert ids(traces.one("inner"))[1] == ids(traces.one("executeTask greet"))[0]


async def test_spans_of_tasks_that_run_side_by_side_are_not_mixed_up() -> None:
    traces = Traces()
    both = asyncio.Barrier(2)

    async def wait(ctx: TaskContext) -> None:
        await both.wait()
        with traces.tracer.start_as_current_span(f"inner {ctx.step_id}"):
            await both.wait()
            await asyncio.create_task(leaf(ctx.step_id))
        await both.wait()

    async def leaf(step_id: str) -> None:
        with traces.tracer.start_as_current_span(f"leaf {step_id}"):
            await both.wait()

    async with WorkerHarness({"greet": wait}, plugins=[traces.plugin()]) as h:
        runs = [await h.submit("greet", step_id=step) for step in ("a", "b")]
        for run in runs:
            await h.settled(run.run_id)
    tasks = {
        str((span.attributes or {})["step_id"]): ids(span)[0]
        for span in traces.spans
        if span.name == "executeTask greet"
    }
    for step in ("a", "b"):
        assert ids(traces.one(f"inner {step}"))[1] == tasks[step]
        assert ids(traces.one(f"leaf {step}"))[1] == ids(traces.one(f"inner {step}"))[0]


async def test_process_handler_is_told_of_its_task_and_its_trace() -> None:
    traces = Traces()
    h = WorkerHarness({}, plugins=[traces.plugin()])
    h.worker.handle("look", telemetry_handlers.look, executor="process")
    async with h:
        result = await h.run("look", "x", step_id="first", headers={"traceparent": TRACEPARENT})
    assert result.output == {
        "run_id": result.run_id,
        "step_id": "first",
        "task_type": "look",
        "attempt": "1",
        "trace_id": TRACE_ID,
        "span_id": ids(traces.one("executeTask look"))[0],
    }


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
async def test_task_that_the_engine_sends_again_belongs_to_the_trace_of_its_run(
    shared_server: EmbeddedServer,
) -> None:
    """The engine sends a retry without headers; the snapshot of the run has the trace."""
    traces, task_type, run_id = Traces(), unique(), unique("run")
    async with connected(shared_server.url) as nc:
        js = nc.jetstream()
        await put_snapshot(js, run_id, "running", trace_parent=TRACEPARENT)
        async with serving(shared_server.url, task_type, hello, plugins=[traces.plugin()]):
            await publish_task(js, task_type, run_id, attempt=2, workflow_name="hello")
            await settled(js, task_type)
    assert ids(traces.one(f"executeTask {task_type}"))[1] == REMOTE_SPAN


async def test_process_handler_is_told_of_them_without_an_sdk_too() -> None:
    plugin = TelemetryPlugin(TelemetrySettings(), tracer_provider=trace.NoOpTracerProvider())
    h = WorkerHarness({}, plugins=[plugin])
    h.worker.handle("look", telemetry_handlers.look, executor="process")
    async with h:
        result = await h.run("look", "x", headers={"traceparent": TRACEPARENT})
    assert result.output["run_id"] == result.run_id
    assert (result.output["trace_id"], result.output["span_id"]) == (TRACE_ID, REMOTE_SPAN)


# --------------------------------------------------------------------------- clients


async def test_submitted_task_has_a_producer_span() -> None:
    traces = Traces()
    async with (
        WorkerHarness({"mail.send": hello}, plugins=[traces.plugin()]) as h,
        Client(MemoryTransport(h.server), plugins=[traces.plugin()]) as client,
    ):
        with traces.tracer.start_as_current_span("main"):
            run = await client.submit("mail.send", {"to": "ada"})
        await h.settled(run.run_id)
    span = traces.one("enqueueTask mail.send")
    assert span.kind is SpanKind.PRODUCER
    assert dict(span.attributes or {}) == {
        "run_id": run.run_id,
        "messaging.system": "nats",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": f"task.mail.send.{run.run_id}",
        "messaging.destination.template": "task.mail.send.{run_id}",
        "messaging.message.id": f"{run.run_id}.mail.send.queued",
        "messaging.message.conversation_id": run.run_id,
    }
    assert traces.parents() == {
        "main": "",
        "enqueueTask mail.send": "main",
        "executeTask mail.send": "enqueueTask mail.send",
        "worker.complete": "executeTask mail.send",
    }


async def test_without_spans_of_the_client_the_callers_context_travels() -> None:
    traces = Traces()
    plugin = traces.plugin(client_spans=False)
    async with (
        WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as h,
        Client(MemoryTransport(h.server), plugins=[plugin]) as client,
    ):
        with traces.tracer.start_as_current_span("main"):
            run = await client.submit("greet")
        await h.settled(run.run_id)
    assert traces.parents()["executeTask greet"] == "main"


async def test_trace_in_the_headers_of_the_caller_stays() -> None:
    traces = Traces()
    async with (
        WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as h,
        Client(MemoryTransport(h.server), plugins=[traces.plugin()]) as client,
    ):
        with traces.tracer.start_as_current_span("main"):
            run = await client.submit("greet", headers={"traceparent": TRACEPARENT})
        await h.settled(run.run_id)
    assert traces.parents()["executeTask greet"] == REMOTE_SPAN


async def test_cancel_of_a_run_carries_the_context_and_has_no_span() -> None:
    traces = Traces()
    server = MemoryServer()
    async with Client(MemoryTransport(server), plugins=[traces.plugin()]) as client:
        with traces.tracer.start_as_current_span("main"):
            await client.run("r1").cancel()
    (sent,) = server.messages(HISTORY, "history.r1")
    assert traces.names == ["main"]
    assert sent.headers["traceparent"] == traceparent_of(traces.one("main"))


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
async def test_engine_that_is_asked_for_a_run_is_told_of_the_trace(
    shared_server: EmbeddedServer,
) -> None:
    traces = Traces()
    heard: list[Mapping[str, str]] = []

    async def engine(message: Msg) -> None:
        heard.append(message.headers or {})
        await message.respond(b'{"run_id":"r1"}')

    async with connected(shared_server.url) as nc:
        await nc.subscribe("api.runs.start", cb=engine)
        await nc.flush()
        async with Client(shared_server.url, plugins=[traces.plugin()]) as client:
            with traces.tracer.start_as_current_span("main"):
                assert (await client.start_workflow("welcome")).run_id == "r1"
    assert heard == [{"traceparent": traceparent_of(traces.one("main"))}]


async def test_baggage_of_the_caller_reaches_the_handler() -> None:
    async def look(ctx: TaskContext) -> object:
        return baggage.get_baggage("user")

    traces = Traces()
    async with (
        WorkerHarness({"greet": look}, plugins=[traces.plugin()]) as h,
        Client(MemoryTransport(h.server), plugins=[traces.plugin()]) as client,
    ):
        token = context.attach(baggage.set_baggage("user", "ada"))
        run = await client.submit("greet")
        context.detach(token)
        result = await h.settled(run.run_id)
    assert result.output == "ada"


# --------------------------------------------------------------------------- no SDK, other formats


async def test_without_an_sdk_the_trace_goes_through_unchanged() -> None:
    plugin = TelemetryPlugin(TelemetrySettings(), tracer_provider=trace.NoOpTracerProvider())
    server = MemoryServer()

    async def submit(ctx: TaskContext) -> str:
        return (await client.submit("other")).run_id

    async with (
        Client(MemoryTransport(server), plugins=[plugin]) as client,
        WorkerHarness({"greet": submit}, plugins=[plugin], server=server) as h,
    ):
        given = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
        result = await h.run("greet", headers=given)
        events = server.messages(HISTORY, f"history.{result.run_id}")
        nested = server.messages(TASKS, f"task.other.{result.output}")
    assert len(events) == 2
    for message in [*events, *nested]:
        assert {name: message.headers[name] for name in given} == given


class OneHeader(TextMapPropagator):
    """A format of the application's own."""

    @property
    def fields(self) -> set[str]:
        return {"x-trace"}

    def extract(
        self,
        carrier: CarrierT,
        context: context.Context | None = None,
        getter: Getter[CarrierT] = default_getter,  # type: ignore[assignment]  # as in the API
    ) -> context.Context:
        (value,) = getter.get(carrier, "x-trace") or [""]
        trace_id, span_id = (int(part, 16) for part in value.split(":"))
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        found = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return trace.set_span_in_context(trace.NonRecordingSpan(found), context)

    def inject(
        self,
        carrier: CarrierT,
        context: context.Context | None = None,
        setter: Setter[CarrierT] = default_setter,  # type: ignore[assignment]  # as in the API
    ) -> None:
        span = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "x-trace", f"{span.trace_id:x}:{span.span_id:x}")


@contextmanager
def propagated_by(propagator: TextMapPropagator) -> Iterator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(propagator)
    try:
        yield
    finally:
        propagate.set_global_textmap(before)


@pytest.mark.parametrize("propagator", [OneHeader(), CompositePropagator([OneHeader()])])
async def test_format_of_the_application_is_used(propagator: TextMapPropagator) -> None:
    traces = Traces()
    with propagated_by(propagator):
        async with WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as h:
            result = await h.run("greet", headers={"x-trace": f"{TRACE_ID}:{REMOTE_SPAN}"})
            sent = h.server.messages(HISTORY, f"history.{result.run_id}")
    span = traces.one("executeTask greet")
    assert ids(span)[1] == REMOTE_SPAN
    assert sent[0].headers["x-trace"].endswith(ids(span)[0].lstrip("0"))
    assert "traceparent" not in sent[0].headers
