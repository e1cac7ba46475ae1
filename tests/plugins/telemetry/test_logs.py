"""Log records say which task and which span they belong to, where the application wants it.

Method: handlers log, and what the handlers of the logging module write is compared. Real: worker,
plugin, OpenTelemetry SDK, logging. Fake: the NATS server, which is in memory.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import telemetry_handlers
from cli_support import in_background
from telemetry_support import TRACE_ID, TRACEPARENT, Traces, ids

from dagnats_worker import Client, EmbeddedServer, SyncTaskContext, TaskContext
from dagnats_worker.testing import WorkerHarness
from dagnats_worker_telemetry import (
    JsonFormatter,
    TaskFilter,
    install_log_filter,
    uninstall_log_filter,
)

FORMAT = "%(run_id)s|%(step_id)s|%(task_type)s|%(attempt)s|%(trace_id)s|%(span_id)s|%(message)s"


@contextmanager
def written(logger_name: str, level: int = logging.INFO) -> Iterator[tuple[logging.Handler, Any]]:
    """A handler on a logger, and what it writes."""
    logger, text = logging.getLogger(logger_name), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(FORMAT))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield handler, lambda: text.getvalue().splitlines()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


async def test_record_of_any_logger_says_which_task_and_span_it_belongs_to() -> None:
    traces = Traces()

    async def work(ctx: TaskContext) -> None:
        logging.getLogger("app.part").info("begun")
        with traces.tracer.start_as_current_span("inner"):
            await asyncio.to_thread(logging.getLogger("app").info, "inside")

    with written("app") as (handler, lines):
        install_log_filter(handler)
        async with WorkerHarness({"greet": work}, plugins=[traces.plugin()]) as h:
            result = await h.run("greet", step_id="first")
        logging.getLogger("app").info("outside")
    task, inner = traces.one("executeTask greet"), traces.one("inner")
    assert task.context is not None
    trace_id = f"{task.context.trace_id:032x}"
    about = f"{result.run_id}|first|greet|1|{trace_id}"
    assert lines() == [
        f"{about}|{ids(task)[0]}|begun",
        f"{about}|{ids(inner)[0]}|inside",
        "||||||outside",
    ]


async def test_record_of_a_blocking_handler_says_so_too() -> None:
    def work(ctx: SyncTaskContext) -> None:
        logging.getLogger("app").info("in a thread")

    traces = Traces()
    with written("app") as (handler, lines):
        install_log_filter(handler)
        async with WorkerHarness({"greet": work}, plugins=[traces.plugin()]) as h:
            result = await h.run("greet")
    (line,) = lines()
    assert line.startswith(f"{result.run_id}|greet|greet|1|")


async def test_tasks_logger_has_the_fields_without_any_setting() -> None:
    async def work(ctx: TaskContext) -> None:
        ctx.log.info("hello")

    traces = Traces()
    with written("dagnats_worker") as (handler, lines):
        async with WorkerHarness({"greet": work}, plugins=[traces.plugin()]) as h:
            await h.run("greet")
        assert handler.filters == []
    task = traces.one("executeTask greet")
    assert [line for line in lines() if line.endswith(f"|{ids(task)[0]}|hello")]
    assert logging.getLogger("dagnats_worker.task").filters == []


async def test_filter_of_the_application_outlasts_the_worker() -> None:
    async def hello(ctx: TaskContext) -> None: ...

    with written("dagnats_worker") as (handler, lines):
        install_log_filter(handler)
        for _ in range(2):
            async with WorkerHarness({"greet": hello}, plugins=[Traces().plugin()]) as h:
                await h.run("greet")
        logging.getLogger("dagnats_worker").info("outside")
    assert lines()[-1] == "||||||outside"


@contextmanager
def root_handler() -> Iterator[tuple[logging.Handler, Any]]:
    with written("", logging.WARNING) as found:
        yield found


def state_of_root() -> list[Any]:
    root = logging.getLogger()
    return [
        (handler, handler.formatter, list(handler.filters)) for handler in root.handlers
    ] + root.filters


@pytest.mark.parametrize("settings", [{}, {"logs": "off"}])
async def test_root_logger_is_left_alone(settings: dict[str, Any]) -> None:
    async def work(ctx: TaskContext) -> bool:
        return state_of_root() == before

    with root_handler():
        before = state_of_root()
        async with WorkerHarness({"greet": work}, plugins=[Traces().plugin(**settings)]) as h:
            assert (await h.run("greet")).output is True


async def test_root_logger_has_the_fields_by_a_setting_and_as_long_as_the_worker_runs() -> None:
    async def work(ctx: TaskContext) -> None:
        logging.getLogger("app").warning("hello")

    with root_handler() as (_, lines):
        before = state_of_root()
        plugins = [Traces().plugin(logs="root")]
        async with WorkerHarness({"greet": work}, plugins=plugins) as h:
            result = await h.run("greet")
            async with WorkerHarness({"greet": work}, plugins=[Traces().plugin(logs="root")]):
                pass  # and that one's end takes nothing away from the other
            again = await h.run("greet")
        assert state_of_root() == before
    assert [line.split("|")[0] for line in lines()] == [result.run_id, again.run_id]


async def test_json_by_a_setting_is_undone_at_the_end() -> None:
    async def work(ctx: TaskContext) -> None:
        logging.getLogger("app").warning("hello %s", "Ada", extra={"order": 7})

    traces = Traces()
    with root_handler() as (_, lines):
        before = state_of_root()
        plugins = [traces.plugin(log_format="json")]
        async with WorkerHarness({"greet": work}, plugins=plugins) as h:
            result = await h.run("greet")
        assert state_of_root() == before
    (entry,) = map(json.loads, lines())
    assert entry.pop("time").endswith("+00:00")
    assert entry.pop("span_id") == ids(traces.one("executeTask greet"))[0]
    assert len(entry.pop("trace_id")) == 32
    assert entry == {
        "level": "warning",
        "logger": "app",
        "message": "hello Ada",
        "order": 7,
        "run_id": result.run_id,
        "step_id": "greet",
        "task_type": "greet",
        "attempt": 1,
    }


async def test_handlers_of_a_child_process_write_what_the_settings_say(tmp_path: Path) -> None:
    traces, path = Traces(), tmp_path / "child.log"
    h = WorkerHarness({}, plugins=[traces.plugin(log_format="json")])
    h.worker.handle("log", telemetry_handlers.log_twice, executor="process", concurrency=1)
    async with h:
        await h.run("log", str(path))
        result = await h.run("log", str(path))
    assert result.error is None
    entry = json.loads(path.read_text().splitlines()[-1])
    assert (entry["message"], entry["run_id"]) == ("hello", result.run_id)
    assert entry["span_id"] == ids(traces.spans[-1])[0]


APP = """
from __future__ import annotations
import logging
from dagnats_worker import Worker

worker = Worker()

@worker.task("log-greet")
async def greet(text: str) -> str:
    logging.getLogger("app").info("hello %s", text)
    return text
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_command_writes_json_where_the_setting_says_so(
    tmp_path: Path, shared_server: EmbeddedServer
) -> None:
    (tmp_path / "app.py").write_text(APP)
    arguments = ("run", "app:worker", "-o", "telemetry.log_format=json")
    where = {"NATS_URL": shared_server.url}
    trace = {"traceparent": TRACEPARENT}
    with in_background(*arguments, folder=tmp_path, **where) as background:
        background.wait_for("runs; stop it with")
        run_id = asyncio.run(submit(shared_server.url, "log-greet", trace))
        background.wait_for("hello Ada")
    (line,) = [line for line in background.stderr.splitlines() if "hello Ada" in line]
    entry = json.loads(line)
    assert (entry["run_id"], entry["logger"], entry["trace_id"]) == (run_id, "app", TRACE_ID)


async def submit(url: str, task_type: str, headers: dict[str, str]) -> str:
    async with Client(url, plugins=[]) as client:
        run = await client.submit(task_type, "Ada", headers=headers)
        await run.result(timeout=timedelta(seconds=30))
        return run.run_id


def test_json_has_the_traceback_and_one_line() -> None:
    with written("app") as (handler, lines):
        handler.setFormatter(JsonFormatter())
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("app").exception("failed")
    (line,) = lines()
    assert "ValueError: no" in json.loads(line)["traceback"]


def test_filter_leaves_what_a_record_has_and_is_installed_once() -> None:
    with written("app") as (handler, lines):
        install_log_filter(logging.getLogger("app"))
        install_log_filter(handler)
        assert len(handler.filters) == len(logging.getLogger("app").filters) == 1
        logging.getLogger("app").info("x", extra={"run_id": "mine"})
        uninstall_log_filter(logging.getLogger("app"))
        assert handler.filters == logging.getLogger("app").filters == []
    assert lines() == ["mine||||||x"]
    assert TaskFilter().filter(logging.makeLogRecord({})) is True
