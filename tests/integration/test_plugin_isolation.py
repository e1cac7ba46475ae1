"""What a failing plugin does to tasks, to the start and to other plugins: required and optional.

Method: plugins that fail in one hook each, in a real worker on the in-memory server; what counts is
the verdict on the message and what is in the history. Fake: the NATS server and its clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from hook_support import plugin_with, raising
from plugin_workers import BOUND_S, MANAGED, QUICK, scope_of, serving, shout, state_of, worker_with

from dagnats_worker import (
    Capability,
    CapabilityMissingError,
    Client,
    DelayTask,
    Failed,
    PluginError,
    TaskContext,
    hookimpl,
)
from dagnats_worker.hookspecs import Message, Response, WorkerFacade
from dagnats_worker.testing import Ack, MemoryServer, MemoryTransport, Nak, TaskResult

GIVEN_BACK = Nak(QUICK.redeliver_after)
ODD = BaseException("odd")


async def fails(ctx: TaskContext) -> None:
    raise ValueError("no luck")


def only_for(event_type: str, error: BaseException) -> Callable[..., Any]:
    """A ``pre_publish`` that fails for one message."""

    async def pre_publish(message: Message) -> None:
        if message.event_type == event_type:
            raise error

    return pre_publish


def types(result: TaskResult) -> list[str]:
    return [event.type for event in result.events]


# ------------------------------------------------------------------------- before the outcome

ERRORS = [
    RuntimeError("broken"),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    ODD,
]
GIVES_BACK: dict[str, tuple[Callable[[BaseException], dict[str, Any]], list[str]]] = {
    "task_scope": (lambda error: {"task_scope": scope_of(before=error)}, []),
    "pre_handle": (lambda error: {"pre_handle": raising(error)}, []),
    "started": (lambda error: {"pre_publish": only_for("step.started", error)}, []),
    "completed": (
        lambda error: {"pre_publish": only_for("step.completed", error)},
        ["step.started"],
    ),
}


@pytest.mark.parametrize("where", GIVES_BACK)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_error_before_the_outcome_gives_the_task_back_or_is_skipped(
    where: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    hooks, published = GIVES_BACK[where]
    async with serving(required=[plugin_with("bad", **hooks(error))]) as harness:
        result = await harness.run("shout")
        assert (result.verdict, types(result)) == (GIVEN_BACK, published)
        assert state_of(harness.worker, "bad") == "active"
    caplog.clear()
    async with serving(optional=[plugin_with("bad", **hooks(error))]) as harness:
        result = await harness.run("shout")
        assert (result.verdict, result.output) == (Ack(), "HELLO")
        assert types(result) == ["step.started", "step.completed"]
    assert "plugin 'bad'" in caplog.text


async def test_other_plugins_are_called_beside_an_optional_one_that_fails() -> None:
    notes: list[str] = []

    async def pre_publish(message: Message) -> None:
        message.headers["X-Good"] = "yes"

    async def pre_handle() -> None:
        notes.append("pre_handle")

    bad = plugin_with(
        "bad", pre_handle=raising(RuntimeError("x")), pre_publish=raising(RuntimeError("y"))
    )
    good = plugin_with("good", pre_handle=pre_handle, pre_publish=pre_publish)
    async with serving(optional=[bad], required=[good]) as harness:
        await harness.run("shout")
        assert notes == ["pre_handle"]
        messages = harness.server.messages("WORKFLOW_HISTORY")
        assert [one.headers.get("X-Good") for one in messages] == ["yes", "yes"]


async def test_optional_plugin_may_end_a_task_on_purpose() -> None:
    bad = plugin_with("bad", pre_handle=raising(DelayTask(timedelta(minutes=3))))
    async with serving(optional=[bad]) as harness:
        assert (await harness.run("shout")).verdict == Nak(timedelta(minutes=3))
        assert state_of(harness.worker, "bad") == "active"


# ------------------------------------------------------------------------- after the handler

STANDS: dict[str, Callable[[BaseException], dict[str, Any]]] = {
    "on_error": lambda error: {"on_error": raising(error)},
    "on_complete": lambda error: {"on_complete": raising(error)},
    "entering outcome_scope": lambda error: {"outcome_scope": scope_of(before=error)},
    "leaving outcome_scope": lambda error: {"outcome_scope": scope_of(after=error)},
    "leaving task_scope": lambda error: {"task_scope": scope_of(after=error)},
}


@pytest.mark.parametrize("where", STANDS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["required", "optional"])
async def test_error_after_the_handler_is_logged_and_the_outcome_stands(
    where: str, error: BaseException, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = plugin_with("bad", **STANDS[where](error))
    async with serving(fails, **{kind: [plugin]}) as harness:
        result = await harness.run("shout", **MANAGED)
        assert result.verdict == Ack()
        assert types(result) == ["step.started", "step.failed"]
    logged = [one for one in caplog.records if one.name == "dagnats_worker.plugins"]
    assert [one.getMessage().startswith(f"plugin 'bad', {where}: ") for one in logged] == [True]
    assert logged[0].exc_info is not None


async def test_answer_of_a_plugin_that_is_no_outcome_is_its_failure_and_the_next_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nonsense() -> Any:
        return "retry it"

    async def answers() -> Failed:
        return Failed("answered", "non_retriable")

    bad, good = plugin_with("bad", on_error=nonsense), plugin_with("good", on_error=answers)
    async with serving(fails, optional=[bad], required=[good]) as harness:
        result = await harness.run("shout", **MANAGED)
    assert result.failure is not None
    assert result.outcome == Failed("answered", "non_retriable")
    assert "plugin 'bad', on_error: 'retry it' is not an outcome" in caplog.text


async def test_client_is_told_of_a_required_plugin_that_fails() -> None:
    bad = plugin_with("bad", pre_publish=raising(RuntimeError("broken")))
    async with Client(MemoryTransport(), plugins=[bad]) as client:
        with pytest.raises(PluginError, match="plugin 'bad', pre_publish: broken"):
            await client.submit("shout")


# ------------------------------------------------------------------------- the start

KEY: Capability[str] = Capability("greeting", install="acme-greeting")


def half_way(cancelled: list[str]) -> Callable[..., Any]:
    """A ``worker_scope`` that has begun a lot when it fails."""

    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> Any:
        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append("background")

        async def page() -> Response:
            return Response(200, "text/plain", b"")

        worker.provide(KEY, lambda _ctx: "hello")
        worker.add_route("/greeting", page)
        worker.spawn(forever, "forever")
        await asyncio.sleep(0)
        raise RuntimeError("no licence")
        yield

    return worker_scope


async def test_required_plugin_that_cannot_be_entered_stops_the_start() -> None:
    notes: list[str] = []
    transport, cancelled = MemoryTransport(), list[str]()
    first = plugin_with("first", worker_scope=scope_of(notes=notes, name="first"))
    bad = plugin_with("bad", worker_scope=half_way(cancelled))
    last = plugin_with("last", worker_scope=scope_of(notes=notes, name="last"))
    worker = worker_with(required=[first, bad, last], connection=transport)
    with pytest.raises(PluginError, match="plugin 'bad', entering worker_scope: no licence"):
        await worker.start()
    assert notes == ["first in", "first out"]
    assert cancelled == ["background"]
    assert not transport.connected
    assert worker.state == "starting"


async def test_optional_plugin_that_cannot_be_entered_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes, cancelled = list[str](), list[str]()

    async def uses(ctx: TaskContext) -> str:
        return ctx.use(KEY)

    async def pre_handle() -> None:
        notes.append("called")

    bad = plugin_with("bad", worker_scope=half_way(cancelled), pre_handle=pre_handle)
    good = plugin_with("good", worker_scope=scope_of(notes=notes, name="good"))
    async with serving(uses, optional=[bad], required=[good]) as harness:
        assert state_of(harness.worker, "bad") == "failed"
        assert cancelled == ["background"]
        assert harness.worker.health.route("/greeting") is None
        result = await harness.run("shout", **MANAGED)
        assert types(result) == ["step.started", "step.failed"]
        assert result.failure is not None
        assert "no plugin provides 'greeting': pip install 'acme-greeting'" in result.failure.error
    assert notes == ["good in", "good out"]
    assert "plugin 'bad' is not called any more (failed): entering worker_scope: no" in caplog.text


async def test_need_of_a_plugin_that_failed_stops_the_start() -> None:
    bad = plugin_with("bad", worker_scope=half_way([]))
    worker = worker_with(optional=[bad], needs=[KEY])
    with pytest.raises(CapabilityMissingError, match="task type 'shout' needs 'greeting'"):
        await worker.start()


async def test_error_while_a_worker_scope_is_left_keeps_nothing_from_ending() -> None:
    notes: list[str] = []
    outer = plugin_with("outer", worker_scope=scope_of(notes=notes, name="outer"))
    bad = plugin_with(
        "bad", worker_scope=scope_of(after=RuntimeError("x"), notes=notes, name="bad")
    )
    async with serving(required=[outer, bad]) as harness:
        await harness.run("shout")
    assert notes == ["outer in", "bad in", "bad out", "outer out"]
    assert harness.worker.state == "stopped"


async def test_source_of_an_optional_plugin_that_fails_is_done_without() -> None:
    bad = plugin_with("bad", open_source=raising(RuntimeError("no group")))
    async with serving(optional=[bad]) as harness:
        assert (await harness.run("shout")).output == "HELLO"


@pytest.mark.parametrize("answer", ["a source", object()])
async def test_source_that_is_none_is_refused_by_what_it_lacks(answer: Any) -> None:
    async def open_source() -> Any:
        return answer

    worker = worker_with(required=[plugin_with("bad", open_source=open_source)])
    with pytest.raises(
        PluginError, match=r"plugin 'bad', open_source: .* is not a Source: its `ac"
    ):
        await worker.start()
    async with serving(optional=[plugin_with("bad", open_source=open_source)]) as harness:
        assert (await harness.run("shout")).output == "HELLO"


# ------------------------------------------------------------------------- quarantine


async def test_optional_plugin_that_keeps_failing_is_not_called_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    async def pre_handle() -> None:
        calls.append("bad")
        raise RuntimeError("broken")

    async with serving(optional=[plugin_with("bad", pre_handle=pre_handle)], failures_max=3) as one:
        for expected in ("active", "active", "quarantined", "quarantined", "quarantined"):
            assert (await one.run("shout")).output == "HELLO"
            assert state_of(one.worker, "bad") == expected
        (state,) = (
            found
            for found in one.worker._running.facade.plugins
            if found.name == "bad"  # type: ignore[union-attr]  # it runs
        )
    assert len(calls) == 3
    assert state.reason == "pre_handle: broken"
    assert "plugin 'bad' is not called any more (quarantined): pre_handle: broken" in caplog.text


async def test_success_resets_the_count() -> None:
    failing = iter([True, True, False, True, True, False, True, True, True])

    async def pre_handle() -> None:
        if next(failing, False):
            raise RuntimeError("broken")

    async with serving(optional=[plugin_with("bad", pre_handle=pre_handle)], failures_max=3) as one:
        for _ in range(8):
            await one.run("shout")
            assert state_of(one.worker, "bad") == "active"
        await one.run("shout")
        assert state_of(one.worker, "bad") == "quarantined"


async def test_hook_that_always_fails_is_not_excused_by_another_that_does_not() -> None:
    async def fine() -> None: ...

    bad = plugin_with("bad", pre_handle=fine, on_complete=raising(RuntimeError("broken")))
    async with serving(optional=[bad], failures_max=2) as harness:
        for _ in range(2):
            await harness.run("shout")
        assert state_of(harness.worker, "bad") == "quarantined"


@pytest.mark.parametrize("side", ["before", "after"])
async def test_scope_that_always_fails_is_quarantined_too(side: str) -> None:
    bad = plugin_with("bad", task_scope=scope_of(**{side: RuntimeError("broken")}))
    async with serving(optional=[bad], failures_max=2) as harness:
        for _ in range(3):
            assert (await harness.run("shout")).output == "HELLO"
        assert state_of(harness.worker, "bad") == "quarantined"


async def test_required_plugin_is_never_quarantined() -> None:
    bad = plugin_with("bad", on_complete=raising(RuntimeError("broken")))
    async with serving(required=[bad], failures_max=2) as harness:
        for _ in range(4):
            await harness.run("shout")
        assert state_of(harness.worker, "bad") == "active"


async def test_worker_scope_of_a_plugin_in_quarantine_is_left_at_the_end() -> None:
    notes: list[str] = []
    bad = plugin_with(
        "bad",
        worker_scope=scope_of(notes=notes, name="bad"),
        pre_handle=raising(RuntimeError("broken")),
    )
    async with serving(optional=[bad], failures_max=1) as harness:
        await harness.run("shout")
        assert state_of(harness.worker, "bad") == "quarantined"
    assert notes == ["bad in", "bad out"]


# ------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("name", "value"), [("X-Bad", 7), ("X-Bad", "a\r\nNats-Msg-Id: b"), (7, "x"), ("a b", "x")]
)
async def test_header_that_cannot_be_sent_is_left_out_and_told(
    name: Any, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def pre_publish(message: Message) -> None:
        message.headers[name] = value
        message.headers["X-Good"] = "yes"

    async with serving(required=[plugin_with("bad", pre_publish=pre_publish)]) as harness:
        assert (await harness.run("shout")).output == "HELLO"
        (started, _) = harness.server.messages("WORKFLOW_HISTORY")
    assert started.headers["X-Good"] == "yes"
    assert name not in started.headers
    assert "pre_publish" in caplog.text
    assert repr(name) in caplog.text


async def test_plugin_that_is_in_the_code_is_told_of_with_its_version() -> None:
    class Mine(type(plugin_with("mine"))):  # type: ignore[misc]  # a class that is made
        @hookimpl
        async def pre_handle(self) -> None: ...

    async with serving(required=[Mine()]) as harness:
        (mine,) = (one for one in harness.worker._hooks.states if one.name == "mine")
    assert (mine.version, mine.state, mine.reason) == ("", "active", "")


async def test_plugin_whose_hooks_fail_does_not_end_the_worker() -> None:
    bad = plugin_with(
        "bad",
        task_scope=scope_of(before=SystemExit(1)),
        pre_handle=raising(KeyboardInterrupt()),
        on_complete=raising(ODD),
    )
    server = MemoryServer()
    worker = worker_with(shout, optional=[bad], connection=MemoryTransport(server))
    with_tasks = 5
    async with worker, Client(MemoryTransport(server), plugins=()) as client:
        runs = [await client.submit("shout") for _ in range(with_tasks)]
        async with asyncio.timeout(BOUND_S):
            assert [await run.result() for run in runs] == ["HELLO"] * with_tasks
        logging.getLogger("dagnats_worker").debug("the worker goes on")
        assert worker.state == "running"
