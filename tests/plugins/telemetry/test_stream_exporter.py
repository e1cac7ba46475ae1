"""Spans and metrics in the engine's TELEMETRY stream, and what becomes of tasks meanwhile.

Method: workers run tasks, and the stream is read. Real: the plugin, the SDK, the worker and the
server, which is without the stream, cut off or frozen where a test says so. Fake: in the unit tests
of the queue, the connection.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.errors import NoStreamResponseError
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from support import connected, eventually, unique
from worker_support import Found, configured, stored

from dagnats_worker import Client, EmbeddedServer, Worker
from dagnats_worker.testing import WorkerHarness
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings
from dagnats_worker_telemetry import _readers as readers
from dagnats_worker_telemetry._records import Record
from dagnats_worker_telemetry._stream_exporter import (
    QUEUE_MAX,
    StreamSpanExporter,
    TelemetryStream,
)

BOUND_S = 30
LOGGER = "dagnats_worker_telemetry"


class Set:
    """A worker with the stream exporter, and providers of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.service = unique("svc")
        resource = Resource({"service.name": self.service})
        self.tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.meters = MeterProvider(resource=resource, shutdown_on_exit=False)
        self.task_type = unique()
        self.url = url
        plugin = TelemetryPlugin(
            TelemetrySettings(stream=True, **settings),
            tracer_provider=self.tracers,
            meter_provider=self.meters,
        )
        config = configured(drain_timeout=timedelta(seconds=5))
        self.worker = Worker(url, plugins=[plugin], config=config)
        self.worker.handle(self.task_type, self.echo)

    async def echo(self, text: str) -> str:
        with self.tracers.get_tracer("handler").start_as_current_span("work") as span:
            span.set_attribute("size", len(text))
        return text

    async def run_task(self) -> str:
        """Run a task to its end, and tell the run."""
        async with Client(self.url, plugins=[]) as client, asyncio.timeout(BOUND_S):
            run = await client.submit(self.task_type, "hello")
            assert await run.result() == "hello"
            return run.run_id

    async def spans(self, js: JetStreamContext, run_id: str = "*") -> list[Found]:
        return await stored(js, "TELEMETRY", f"telemetry.spans.{self.service}.{run_id}")

    async def metrics(self, js: JetStreamContext) -> list[Found]:
        return await stored(js, "TELEMETRY", f"telemetry.metrics.{self.service}.>")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        one.getMessage()
        for one in caplog.records
        if one.name == LOGGER and one.levelno >= logging.WARNING
    ]


# ------------------------------------------------------------------------- on a real server


async def test_spans_of_a_task_are_stored_for_its_run_before_the_worker_has_ended(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    one = Set(shared_server.url)
    async with one.worker:
        run_id = await one.run_task()
    spans = {span.body["name"]: span.body for span in await one.spans(js, run_id)}
    assert set(spans) == {f"executeTask {one.task_type}", "worker.complete"}
    task, outcome = spans[f"executeTask {one.task_type}"], spans["worker.complete"]
    assert task["kind"] == "SPAN_KIND_SERVER"
    assert outcome["parentSpanId"] == task["spanId"]
    attributes = {pair["key"]: pair["value"] for pair in task["attributes"]}
    assert attributes["run_id"] == {"stringValue": run_id}
    assert attributes["task_name"] == {"stringValue": one.task_type}
    (own,) = await one.spans(js, "no-run")
    assert own.body["name"] == "work"
    assert own.body["parentSpanId"] == task["spanId"]


async def test_record_has_the_id_of_its_span(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    one = Set(shared_server.url)
    async with one.worker:
        run_id = await one.run_task()
    for found in await one.spans(js, run_id):
        ids = [base64.b64decode(found.body[key]).hex() for key in ("traceId", "spanId")]
        assert found.message_id == ".".join(ids)


async def test_last_state_of_the_metrics_is_stored(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    one = Set(shared_server.url)
    async with one.worker:
        await one.run_task()
    metrics = {found.body["name"]: found.body for found in await one.metrics(js)}
    (duration,) = metrics["step.duration_ms"]["data"]["DataPoints"]
    assert duration["Count"] == 1
    (active,) = metrics["worker.tasks.active"]["data"]["DataPoints"]
    assert (active["Attributes"], active["Value"]) == ([], 0)
    assert metrics["worker.tasks.active"]["serviceName"] == one.service
    assert "dagnats.worker.drain.duration" in metrics


async def test_metrics_are_stored_again_and_again(
    shared_server: EmbeddedServer, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "STREAM_EVERY_S", 0.05)
    one = Set(shared_server.url)
    removed: list[Any] = []
    remove = one.meters.remove_metric_reader
    monkeypatch.setattr(
        one.meters, "remove_metric_reader", lambda reader: (removed.append(reader), remove(reader))
    )

    async def seen() -> bool:
        names = [found.body["name"] for found in await one.metrics(js)]
        return names.count("worker.tasks.active") >= 3

    async with one.worker:
        await eventually(seen, BOUND_S)
    ids = [found.message_id for found in await one.metrics(js)]
    assert len(set(ids)) == len(ids)
    assert len(removed) == 1, "the provider is left as it was"


async def test_off_by_default(shared_server: EmbeddedServer, js: JetStreamContext) -> None:
    one = Set(shared_server.url)
    plugin = TelemetryPlugin(
        TelemetrySettings(), tracer_provider=one.tracers, meter_provider=one.meters
    )
    worker = Worker(shared_server.url, plugins=[plugin], config=configured())
    worker.handle(one.task_type, one.echo)
    async with worker:
        await one.run_task()
    assert await one.spans(js) == []
    assert await one.metrics(js) == []


async def test_missing_stream_is_told_once_with_a_remedy_and_hurts_no_task(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(nats_server.url) as nc:
        await nc.jetstream().delete_stream("TELEMETRY")
        one = Set(nats_server.url)
        async with one.worker:
            for _ in range(3):
                await one.run_task()
                await asyncio.to_thread(one.tracers.force_flush)
            await eventually(lambda: warnings(caplog), BOUND_S)
            began = time.monotonic()
        assert time.monotonic() - began < BOUND_S
    (warning,) = warnings(caplog)
    assert "no stream TELEMETRY" in warning
    assert "`dagnats-worker setup`" in warning


async def test_stream_that_comes_later_is_used(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        info = await js.stream_info("TELEMETRY")
        await js.delete_stream("TELEMETRY")
        one = Set(nats_server.url)
        async with one.worker:
            await one.run_task()
            await asyncio.to_thread(one.tracers.force_flush)
            await eventually(lambda: warnings(caplog), BOUND_S)
            await js.add_stream(info.config)
            run_id = await one.run_task()
        assert len(await one.spans(js, run_id)) == 2


async def test_worker_without_a_server_of_its_own_says_so_and_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def echo(text: str) -> str:
        return text

    plugin = TelemetryPlugin(
        TelemetrySettings(stream=True),
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider(shutdown_on_exit=False),
    )
    async with WorkerHarness({"echo": echo}, plugins=[plugin]) as harness:
        assert (await harness.run("echo", "hi")).output == "hi"
    assert [one for one in warnings(caplog) if "in memory" in one] == warnings(caplog) != []


async def test_frozen_server_does_not_hold_the_end_up(nats_server: EmbeddedServer) -> None:
    one = Set(nats_server.url, flush_timeout=timedelta(seconds=1))
    await one.worker.start()
    await one.run_task()
    nats_server.pause()
    try:
        began = time.monotonic()
        async with asyncio.timeout(BOUND_S):
            await one.worker.stop(timedelta(seconds=2))
        assert time.monotonic() - began < BOUND_S
    finally:
        nats_server.resume()


# --------------------------------------------------------------------- the queue, by itself


class Connection:
    """nats-py's client and its JetStream context, as far as the queue uses them."""

    def __init__(self) -> None:
        self.is_connected = True
        self.stored: list[str] = []
        self.error: Exception | None = None
        self.refuses: set[str] = set()
        self.silent = False
        self.unanswered: list[asyncio.Future[Any]] = []

    async def publish_async(
        self, subject: str, body: bytes, headers: dict[str, str]
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if subject in self.refuses:
            raise ValueError("too large")
        if self.silent:
            self.unanswered.append(answer)
        elif self.error is not None:
            answer.set_exception(self.error)
        else:
            self.stored.append(headers["Nats-Msg-Id"])
            answer.set_result(None)
        return answer


@asynccontextmanager
async def running_stream(connection: Connection) -> AsyncIterator[TelemetryStream]:
    stream = TelemetryStream(connection, connection)
    task = asyncio.create_task(stream.run())
    try:
        yield stream
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def records(count: int, subject: str = "s") -> list[Record]:
    return [Record(subject, f"{subject}{number}", b"{}") for number in range(count)]


async def test_records_are_published_in_order_from_any_thread() -> None:
    connection = Connection()
    async with running_stream(connection) as stream:
        await asyncio.to_thread(stream.offer, records(200))
        await eventually(lambda: len(connection.stored) == 200, BOUND_S)
    assert connection.stored == [f"s{number}" for number in range(200)]


async def test_queue_is_bounded_and_what_finds_no_room_is_counted() -> None:
    connection = Connection()
    stream = TelemetryStream(connection, connection)
    stream.offer(records(QUEUE_MAX + 7))
    assert stream.lost == 7
    assert await stream.publish()
    assert len(connection.stored) == QUEUE_MAX


async def test_offering_never_waits_for_the_loop() -> None:
    connection = Connection()
    stream = TelemetryStream(connection, connection)
    offered = threading.Thread(target=stream.offer, args=(records(10),))
    offered.start()
    offered.join(BOUND_S)  # the loop stands still meanwhile
    assert not offered.is_alive()


async def test_flush_on_the_loop_itself_does_not_wait_for_it() -> None:
    connection = Connection()
    async with running_stream(connection) as stream:
        exporter = StreamSpanExporter(stream)
        exporter.export([ReadableSpan("x", context=a_context())])
        began = time.monotonic()
        assert exporter.force_flush(BOUND_S * 1000)
        assert time.monotonic() - began < BOUND_S / 2, "it waited for the loop, which waited for it"
        await eventually(lambda: connection.stored, BOUND_S)


async def test_flush_from_a_thread_waits_until_all_is_published() -> None:
    connection = Connection()
    async with running_stream(connection) as stream:
        exporter = StreamSpanExporter(stream)

        def export() -> int:
            exporter.export([ReadableSpan("x", context=a_context())] * 100)
            exporter.shutdown(BOUND_S * 1000)
            return len(connection.stored)

        assert await asyncio.to_thread(export) == 100


async def test_flush_ends_in_time_when_the_server_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = Connection()
    connection.silent = True
    stream = TelemetryStream(connection, connection)
    stream.offer(records(200))
    began = time.monotonic()
    await asyncio.to_thread(stream.flush, 0.1)
    await eventually(lambda: [one for one in warnings(caplog) if "left behind" in one], BOUND_S)
    assert time.monotonic() - began < BOUND_S


async def test_answer_that_does_not_come_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dagnats_worker_telemetry._stream_exporter.STORE_WAIT_S", 0.05)
    connection = Connection()
    connection.silent = True
    stream = TelemetryStream(connection, connection)
    stream.offer(records(3))
    assert not await stream.publish()
    assert stream.lost == 3
    assert all(answer.cancelled() for answer in connection.unanswered), "nats-py forgets them"
    assert len(warnings(caplog)) == 1
    assert "no answer within" in warnings(caplog)[0]


async def test_record_that_cannot_be_sent_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    connection = Connection()
    connection.refuses.add("large")
    stream = TelemetryStream(connection, connection)
    stream.offer([*records(2), *records(2, "large"), *records(2, "t")])
    assert await stream.publish()
    assert connection.stored == ["s0", "s1", "t0", "t1"]
    assert stream.lost == 2
    assert len(warnings(caplog)) == 1


async def test_nothing_is_sent_into_a_connection_that_is_lost() -> None:
    connection = Connection()
    connection.is_connected = False
    stream = TelemetryStream(connection, connection)
    stream.offer(records(3))
    assert not await stream.publish()
    connection.is_connected = True
    assert await stream.publish()
    assert len(connection.stored) == 3


async def test_trouble_is_told_once_and_again_when_it_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    connection = Connection()
    stream = TelemetryStream(connection, connection)

    async def publish(error: Exception | None) -> None:
        connection.error = error
        stream.offer(records(1))
        await stream.publish()

    for _ in range(3):
        await publish(NoStreamResponseError())
    assert len(warnings(caplog)) == 1
    await publish(None)
    assert "stores records again; 3 were lost" in caplog.messages[-1]
    await publish(NoStreamResponseError())
    assert len(warnings(caplog)) == 2


async def test_stream_of_a_closed_loop_takes_records_and_does_nothing() -> None:
    def make() -> TelemetryStream:
        async def inner() -> TelemetryStream:
            return TelemetryStream(Connection(), Connection())

        return asyncio.run(inner())

    stream = await asyncio.to_thread(make)
    stream.offer(records(1))
    await asyncio.to_thread(stream.flush, 1.0)


def a_context() -> Any:
    return SimpleNamespace(trace_id=1, span_id=2, trace_state=None)
