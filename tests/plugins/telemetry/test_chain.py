"""A chain of two steps over two workers is one trace, as a collector receives it.

Method: a client submits to a worker, whose handler submits to another one; the client and the
workers are in processes of their own, as they are where this matters, and export over OTLP/HTTP.
Real: processes, NATS server, OpenTelemetry SDK, exporters. Fake: the collector, which keeps the
spans that it receives.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_support import Background, environment, in_background
from telemetry_support import Receiver, otlp_receiver

from dagnats_worker import EmbeddedServer

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

BOUND_S = 60

FIRST = """
from __future__ import annotations
from datetime import timedelta
from dagnats_worker import Client, TaskContext, Worker
from opentelemetry import trace

worker = Worker()

@worker.task("first-{name}")
async def first(ctx: TaskContext, text: str) -> str:
    with trace.get_tracer("app").start_as_current_span("look things up"):
        async with Client() as client:
            run = await client.submit("second-{name}", text)
            return await run.result(timeout=timedelta(seconds=30))
"""

SECOND = """
from __future__ import annotations
from dagnats_worker import Worker
from opentelemetry import trace

worker = Worker()

@worker.task("second-{name}", executor="{executor}")
{define} second(text: str) -> str:
    with trace.get_tracer("app").start_as_current_span("shout"):
        return text.upper()
"""

CLIENT = """
from __future__ import annotations
import asyncio
from datetime import timedelta
from dagnats_worker import Client
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

async def main() -> None:
    with trace.get_tracer("app").start_as_current_span("order"):
        async with Client() as client:
            run = await client.submit("first-{name}", "hello")
            print(await run.result(timeout=timedelta(seconds=30)))

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
asyncio.run(main())
provider.shutdown()
"""


def variables(server: EmbeddedServer, receiver: Receiver, service: str) -> dict[str, str]:
    return {
        "NATS_URL": server.url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_SERVICE_NAME": service,
    }


@contextmanager
def worker_of(
    code: str, service: str, folder: Path, server: EmbeddedServer, receiver: Receiver
) -> Iterator[Background]:
    """A worker whose settings ask for an exporter, in a process of its own."""
    folder.mkdir()
    (folder / "app.py").write_text(code)
    arguments = ("run", "app:worker", "-o", "telemetry.exporter=otlp")
    with in_background(
        *arguments, folder=folder, **variables(server, receiver, service)
    ) as background:
        background.wait_for("runs; stop it with")
        yield background


@pytest.mark.parametrize(
    ("executor", "define"), [("async", "async def"), ("thread", "def"), ("process", "def")]
)
def test_chain_over_two_workers_is_one_trace_with_the_right_parents(
    executor: str, define: str, tmp_path: Path, shared_server: EmbeddedServer
) -> None:
    name = {"name": executor}
    with otlp_receiver() as receiver:
        first = worker_of(FIRST.format(**name), "front", tmp_path / "1", shared_server, receiver)
        second = worker_of(
            SECOND.format(**name, executor=executor, define=define),
            "back",
            tmp_path / "2",
            shared_server,
            receiver,
        )
        with first, second:
            client = subprocess.run(
                [sys.executable, "-c", CLIENT.format(**name)],
                capture_output=True,
                text=True,
                env=environment(**variables(shared_server, receiver, "shop")),
                timeout=BOUND_S,
                check=False,
            )
            assert client.returncode == 0, client.stderr
            assert client.stdout == "HELLO\n"
            receiver.wait_for("shout")  # from a child process, which ends with its worker
        # The workers have drained, and so nothing is missing.
        spans = receiver.spans
    expected = {
        "order": "",
        f"enqueueTask first-{executor}": "order",
        f"executeTask first-{executor}": f"enqueueTask first-{executor}",
        "look things up": f"executeTask first-{executor}",
        f"enqueueTask second-{executor}": "look things up",
        f"executeTask second-{executor}": f"enqueueTask second-{executor}",
        "shout": f"executeTask second-{executor}",
    }
    assert len({span.trace_id for span in spans}) == 1
    found = receiver.parents()
    assert found.pop("worker.complete").startswith("executeTask ")
    assert found == expected
    outcomes = [span.parent_id for span in spans if span.name == "worker.complete"]
    tasks = [span.span_id for span in spans if span.name.startswith("executeTask ")]
    assert sorted(outcomes) == sorted(tasks)
    services = {span.name: span.service for span in spans if span.name != "worker.complete"}
    assert [services[one] for one in expected] == [
        *("shop", "shop", "front", "front", "front", "back", "back")
    ]
    assert {span.scope for span in spans} == {"app", "dagnats/worker"}
