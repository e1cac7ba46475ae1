"""With nothing but the OpenTelemetry API installed there is nothing to be seen of the plugin.

Method: a program in which the SDK and the exporters cannot be imported. Real: worker, plugin, API.
Fake: the NATS server, which is in memory; that the SDK is installed is hidden.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import telemetry_handlers
from cli_support import environment
from telemetry_support import TRACEPARENT

BOUND_S = 60

PROLOGUE = f"""
from __future__ import annotations
import asyncio
import importlib.abc
import sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.instr")):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Hidden())
TRACEPARENT = "{TRACEPARENT}"

from dagnats_worker import TaskContext
from dagnats_worker.testing import WorkerHarness
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings

async def hello(ctx: TaskContext) -> str:
    return "hello"
"""


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + code],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=BOUND_S,
        check=False,
    )


def test_tasks_run_and_a_trace_goes_through() -> None:
    done = run("""
async def main() -> None:
    async with WorkerHarness({"greet": hello}, plugins=[TelemetryPlugin()]) as harness:
        assert (await harness.run("greet")).output == "hello"
        result = await harness.run("greet", headers={"traceparent": TRACEPARENT})
        for message in harness.server.messages("WORKFLOW_HISTORY", f"history.{result.run_id}"):
            print(message.headers["traceparent"] == TRACEPARENT)
    print(sorted(name for name in sys.modules if name.startswith("opentelemetry.sdk")))

asyncio.run(main())
""")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True", "True", "[]"]


def test_worker_calls_no_hook_of_the_plugin_for_a_task() -> None:
    done = run("""
from dagnats_worker import Worker
from dagnats_worker.testing import MemoryTransport

async def main() -> None:
    worker = Worker(MemoryTransport(), plugins=[TelemetryPlugin()])
    worker.handle("greet", hello)
    async with worker:
        hooks = worker._hooks
        print(hooks.task_scope, hooks.pre_publish, hooks.on_error)

asyncio.run(main())
""")
    assert (done.stdout, done.stderr) == ("() () ()\n", "")


def test_trace_goes_through_what_a_handler_submits() -> None:
    done = run("""
from dagnats_worker import Client, Worker
from dagnats_worker.testing import MemoryServer, MemoryTransport
from opentelemetry import baggage, context

server = MemoryServer()

async def ask(ctx: TaskContext) -> dict:
    client = Client(MemoryTransport(server), plugins=[TelemetryPlugin()])
    context.attach(baggage.set_baggage("of", "the handler"))
    async with client:
        return await (await client.submit("look")).result()

async def look(ctx: TaskContext) -> dict:
    return {name: ctx.headers.get(name) for name in ("traceparent", "tracestate", "baggage")}

async def main() -> None:
    worker = Worker(MemoryTransport(server), plugins=[TelemetryPlugin()])
    worker.handle("ask", ask)
    worker.handle("look", look)
    async with Client(MemoryTransport(server), plugins=[]) as client, worker:
        headers = {"traceparent": TRACEPARENT, "tracestate": "a=b"}
        result = await (await client.submit("ask", headers=headers)).result()
        print(result == headers | {"baggage": "of=the+handler"})
        result = await (await client.submit("ask")).result()
        print(result == {"traceparent": None, "tracestate": None, "baggage": "of=the+handler"})

asyncio.run(main())
""")
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_process_of_a_handler_is_told_which_task_it_runs() -> None:
    code = """
import telemetry_handlers

async def main() -> None:
    harness = WorkerHarness({}, plugins=[TelemetryPlugin()])
    harness.worker.handle(
        "look", telemetry_handlers.look, executor="process", concurrency=1
    )
    async with harness:
        result = await harness.run("look", "hello", headers={"traceparent": TRACEPARENT})
        print(result.output["run_id"] == result.run_id, result.output["trace_id"])

asyncio.run(main())
"""
    folders = (environment()["PYTHONPATH"], str(Path(telemetry_handlers.__file__).parent))
    done = run(code, PYTHONPATH=os.pathsep.join(folders))
    assert (done.stdout, done.stderr) == (f"True {TRACEPARENT[3:35]}\n", "")


def test_log_records_say_which_task_they_belong_to() -> None:
    done = run("""
import logging
from dagnats_worker_telemetry import TaskFilter

async def look(ctx: TaskContext) -> dict:
    record = logging.makeLogRecord({})
    TaskFilter().filter(record)
    return {name: record.__dict__[name] for name in ("run_id", "trace_id")}

async def main() -> None:
    async with WorkerHarness({"look": look}, plugins=[TelemetryPlugin()]) as harness:
        result = await harness.run("look", headers={"traceparent": TRACEPARENT})
        print(result.output == {"run_id": result.run_id, "trace_id": TRACEPARENT[3:35]})

asyncio.run(main())
""")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_setting_that_needs_the_sdk_says_what_to_install() -> None:
    done = run("""
async def main() -> None:
    settings = TelemetrySettings(exporter="otlp")
    try:
        async with WorkerHarness({"greet": hello}, plugins=[TelemetryPlugin(settings)]):
            pass
    except Exception as error:
        print(error)

asyncio.run(main())
""")
    assert done.stderr == ""
    assert "pip install 'dagnats-worker-telemetry[sdk]'" in done.stdout


def test_instrumentor_is_not_needed_to_import_the_package() -> None:
    done = run("""
import dagnats_worker_telemetry
try:
    dagnats_worker_telemetry.DagnatsWorkerInstrumentor
except ImportError as error:
    print(error.name)
try:
    dagnats_worker_telemetry.Nothing
except AttributeError as error:
    print(error)
""")
    assert done.stdout.splitlines() == [
        "opentelemetry.instrumentation",
        "module 'dagnats_worker_telemetry' has no attribute 'Nothing'",
    ]
