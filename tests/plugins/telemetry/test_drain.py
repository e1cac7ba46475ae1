"""Exporters that a setting asks for: flushed within the drain, and never in the way of a task.

Method: a collector that refuses, that is not there, or that never answers, and a worker that ends
all the same. Real: worker, plugin, OpenTelemetry SDK, exporter, and in one test the command. Fake:
the collector, and but for that test the NATS server, which is in memory.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_support import in_background, run_command
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from support import free_port
from telemetry_support import FailingExporter, Traces, otlp_receiver

from dagnats_worker import EmbeddedServer, PluginError, TaskContext, Worker
from dagnats_worker.testing import MemoryServer, MemoryTransport, WorkerHarness
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings

BOUND_S = 30


async def hello(ctx: TaskContext) -> str:
    return "hello"


@pytest.fixture(autouse=True)
def patient_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever waits for the exporter waits for longer than any bound of these tests."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    monkeypatch.setenv("OTEL_BSP_EXPORT_TIMEOUT", "600000")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")


async def stopped(worker: Worker, timeout: timedelta) -> None:
    async with asyncio.timeout(BOUND_S):
        await worker.stop(timeout)


async def test_spans_are_flushed_before_the_worker_has_stopped() -> None:
    with otlp_receiver() as receiver:
        plugin = Traces().plugin(exporter="otlp", endpoint=receiver.url)
        async with WorkerHarness({"greet": hello}, plugins=[plugin]) as h:
            await h.run("greet")
            assert receiver.spans == []
        assert [span.name for span in receiver.spans] == ["worker.complete", "executeTask greet"]


async def test_collector_that_never_answers_delays_no_task_and_no_drain_past_its_deadline() -> None:
    with otlp_receiver() as receiver:
        receiver.may_answer.clear()
        plugin = Traces().plugin(
            exporter="otlp", endpoint=receiver.url, flush_timeout=timedelta(hours=1)
        )
        worker = Worker(MemoryTransport(MemoryServer()), plugins=[plugin])
        worker.handle("greet", hello)
        harness = WorkerHarness(worker)
        async with harness:
            for _ in range(3):
                assert (await harness.run("greet")).output == "hello"
            await stopped(harness.worker, timedelta(seconds=0.2))
            assert harness.worker.drained
        assert receiver.asked.acquire(timeout=BOUND_S), "it was tried"
        assert receiver.spans == []


async def test_wait_for_the_collector_is_bounded_by_the_setting_too() -> None:
    with otlp_receiver() as receiver:
        receiver.may_answer.clear()
        plugin = Traces().plugin(
            exporter="otlp", endpoint=receiver.url, flush_timeout=timedelta(seconds=0.1)
        )
        async with WorkerHarness({"greet": hello}, plugins=[plugin]) as harness:
            await harness.run("greet")
            await stopped(harness.worker, timedelta(hours=1))


@contextmanager
def refusing(status: int) -> Iterator[str]:
    if status:
        with otlp_receiver() as receiver:
            receiver.status = status
            yield receiver.url
    else:
        yield f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("status", [400, 503, 0])
async def test_collector_that_refuses_or_is_not_there_hurts_no_task(status: int) -> None:
    with refusing(status) as url:
        plugin = Traces().plugin(
            exporter="otlp", endpoint=url, flush_timeout=timedelta(seconds=0.5)
        )
        async with WorkerHarness({"greet": hello}, plugins=[plugin]) as harness:
            for _ in range(3):
                assert (await harness.run("greet")).output == "hello"
            await stopped(harness.worker, timedelta(hours=1))


async def test_exporter_that_raises_hurts_no_task() -> None:
    traces = Traces()
    traces.provider.add_span_processor(SimpleSpanProcessor(FailingExporter()))
    async with WorkerHarness({"greet": hello}, plugins=[traces.plugin()]) as harness:
        for _ in range(3):
            assert (await harness.run("greet")).output == "hello"
    assert len(traces.spans) == 6


async def test_workers_of_a_process_share_an_exporter_until_the_last_one_has_stopped() -> None:
    traces = Traces()
    with otlp_receiver() as receiver:

        def worker() -> WorkerHarness:
            plugin = traces.plugin(exporter="otlp", endpoint=receiver.url)
            return WorkerHarness({"greet": hello}, plugins=[plugin])

        async with worker() as one:
            async with worker() as other:
                await other.run("greet")
            await one.run("greet")
        assert len(receiver.spans) == 4, "each once"
        async with worker() as again:
            await again.run("greet")
        assert len(receiver.spans) == 6
        with traces.tracer.start_as_current_span("after the last one"):
            pass
        assert len(receiver.spans) == 6


async def test_setting_without_a_provider_of_the_sdk_says_what_is_wrong() -> None:
    from opentelemetry.trace import NoOpTracerProvider

    settings = TelemetrySettings(exporter="otlp")
    plugin = TelemetryPlugin(settings, tracer_provider=NoOpTracerProvider())
    with pytest.raises(PluginError, match="NoOpTracerProvider is no provider of the OpenTelemetry"):
        async with WorkerHarness({"greet": hello}, plugins=[plugin]):
            pass


def test_negative_time_is_refused() -> None:
    with pytest.raises(ValueError, match="flush_timeout"):
        TelemetrySettings(flush_timeout=timedelta(seconds=-1))


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "localhost", "grpc://collector:4317"])
def test_endpoint_that_is_no_url_is_refused_before_anything_is_lost(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint begins with http:// or https://, .* got"):
        TelemetrySettings(endpoint=endpoint)


APP = """
from __future__ import annotations
from dagnats_worker import Worker

worker = Worker()

@worker.task("blocked-greet")
async def greet(text: str) -> str:
    return text
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_process_ends_while_its_collector_does_not_answer(
    tmp_path: Path, shared_server: EmbeddedServer
) -> None:
    (tmp_path / "app.py").write_text(APP)
    with otlp_receiver() as receiver:
        receiver.may_answer.clear()
        settings: dict[str, Any] = {"exporter": "otlp", "endpoint": receiver.url}
        options = [f"-otelemetry.{name}={value}" for name, value in settings.items()]
        arguments = ("run", "app:worker", *options, "--drain-timeout", "1s")
        where = {"NATS_URL": shared_server.url}
        with in_background(*arguments, folder=tmp_path, **where) as background:
            background.wait_for("runs; stop it with")
            submit = ("submit", "blocked-greet", '"x"', "--wait", "--url", shared_server.url)
            assert run_command(*submit).stdout == '"x"\n'
            background.signal(signal.SIGTERM)
            assert background.wait() == 0
        assert "telemetry is not exported within" in background.stderr
