"""The instrumentor: spans without any code, once, and nothing of it afterwards.

Method: the instrumentor by itself, and the command of OpenTelemetry around ours. Real: worker,
plugin, OpenTelemetry SDK and its command. Fake: the collector; where the command is not used, the
NATS server, which is in memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import cli_support
import pytest
from cli_support import environment, in_background, run_command
from telemetry_support import Traces, otlp_receiver

from dagnats_worker import Client, EmbeddedServer, TaskContext, Worker
from dagnats_worker.testing import MemoryServer, MemoryTransport, WorkerHarness
from dagnats_worker_telemetry import DagnatsWorkerInstrumentor, TelemetryPlugin


async def hello(ctx: TaskContext) -> str:
    return "hello"


@pytest.fixture
def instrumentor() -> Iterator[DagnatsWorkerInstrumentor]:
    instrumentor = DagnatsWorkerInstrumentor()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


async def spans_of_a_task(traces: Traces, *plugins: TelemetryPlugin) -> list[str]:
    before = len(traces.spans)
    async with WorkerHarness({"greet": hello}, plugins=plugins) as harness:
        await harness.run("greet")
    return traces.names[before:]


async def test_worker_and_client_without_the_plugin_have_spans(
    instrumentor: DagnatsWorkerInstrumentor,
) -> None:
    traces = Traces()
    instrumentor.instrument(tracer_provider=traces.provider)
    server = MemoryServer()
    worker = Worker(MemoryTransport(server), plugins=[])
    worker.handle("greet", hello)
    async with worker, Client(MemoryTransport(server), plugins=()) as client:
        run = await client.submit("greet")
        assert await run.result() == "hello"
    assert traces.parents() == {
        "enqueueTask greet": "",
        "executeTask greet": "enqueueTask greet",
        "worker.complete": "executeTask greet",
    }


async def test_plugin_and_instrumentor_together_make_each_span_once(
    instrumentor: DagnatsWorkerInstrumentor,
) -> None:
    traces = Traces()
    instrumentor.instrument(tracer_provider=traces.provider)
    instrumentor.instrument(tracer_provider=traces.provider)
    spans = await spans_of_a_task(traces, TelemetryPlugin())
    assert spans == ["worker.complete", "executeTask greet"]


async def test_plugin_with_a_provider_of_its_own_keeps_it(
    instrumentor: DagnatsWorkerInstrumentor,
) -> None:
    traces, others = Traces(), Traces()
    instrumentor.instrument(tracer_provider=others.provider)
    assert len(await spans_of_a_task(traces, traces.plugin())) == 2
    assert others.names == []


async def test_nothing_is_left_of_it(instrumentor: DagnatsWorkerInstrumentor) -> None:
    before = (Worker.__init__, Client.__init__)
    traces = Traces()
    instrumentor.instrument(tracer_provider=traces.provider)
    assert len(await spans_of_a_task(traces)) == 2
    instrumentor.uninstrument()
    assert (Worker.__init__, Client.__init__) == before
    assert await spans_of_a_task(traces) == []


TAKEN_AWAY = """
import asyncio
from opentelemetry import trace
from telemetry_support import Traces
from dagnats_worker.testing import WorkerHarness
from dagnats_worker_telemetry import DagnatsWorkerInstrumentor

async def hello(ctx):
    return "hello"

async def main():
    traces = Traces()
    trace.set_tracer_provider(traces.provider)
    DagnatsWorkerInstrumentor().instrument()
    async with WorkerHarness({"greet": hello}) as harness:
        await harness.run("greet")
        DagnatsWorkerInstrumentor().uninstrument()
        print((await harness.run("greet")).output)
    print(traces.names)

asyncio.run(main())
"""


def test_worker_that_runs_has_no_more_spans_once_it_is_taken_away() -> None:
    """With a global provider, which a process can set only once."""
    done = subprocess.run(
        [sys.executable, "-c", TAKEN_AWAY],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["hello", "['worker.complete', 'executeTask greet']"]


def test_it_is_found_by_the_command_of_opentelemetry() -> None:
    (found,) = entry_points(group="opentelemetry_instrumentor", name="dagnats_worker")
    assert found.load() is DagnatsWorkerInstrumentor


APP = """
from __future__ import annotations
from dagnats_worker import Worker
from dagnats_worker_telemetry import TelemetryPlugin
from opentelemetry import trace

worker = Worker({plugins})

@worker.task("{task_type}")
async def greet(text: str) -> str:
    with trace.get_tracer("app").start_as_current_span("look"):
        return text
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
@pytest.mark.parametrize(
    ("task_type", "plugins"),
    [("none", "plugins=[]"), ("installed", ""), ("both", "plugins=[TelemetryPlugin()]")],
)
def test_command_of_opentelemetry_makes_spans_of_a_worker_without_code(
    task_type: str,
    plugins: str,
    tmp_path: Path,
    shared_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "app.py").write_text(APP.format(plugins=plugins, task_type=task_type))
    scripts = Path(sys.executable).parent
    with otlp_receiver() as receiver:
        where: dict[str, Any] = {
            "NATS_URL": shared_server.url,
            "OTEL_SERVICE_NAME": "greeter",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        }
        command = (str(scripts / "opentelemetry-instrument"), str(scripts / "dagnats-worker"))
        with monkeypatch.context() as patched:
            patched.setattr(cli_support, "COMMAND", command)
            running = in_background("run", "app:worker", folder=tmp_path, **where)
            with running as background:
                background.wait_for("runs; stop it with")
                patched.undo()
                submit = ("submit", task_type, '"x"', "--wait", "--url", shared_server.url)
                assert run_command(*submit).stdout == '"x"\n'
        receiver.wait_for("look", f"executeTask {task_type}", "worker.complete")
    assert sorted(span.name for span in receiver.spans) == [
        f"executeTask {task_type}",
        "look",
        "worker.complete",
    ]
    assert receiver.parents()["look"] == f"executeTask {task_type}"
    assert {span.service for span in receiver.spans} == {"greeter"}
