"""What a hook may change on the way out of a task, and what its errors do there.

Method: plugins as anybody writes them, in a real worker; what is stored and what becomes of the
message is compared with what plugins were promised. Fake: the NATS server, which is the in-memory
one of ``dagnats_worker.testing``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from hook_support import (
    BOUND_S,
    DEAD,
    HISTORY,
    MANAGED,
    REDELIVER_AFTER,
    SOON,
    TASKS,
    Carrying,
    Diary,
    Notes,
    fails,
    left,
    never,
    plugin_with,
    raising,
    run,
    shout,
    types,
    what_was_carried,
)
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import (
    Client,
    Completed,
    Continued,
    DelayTask,
    EndTask,
    Failed,
    Outcome,
    Paused,
    Plugin,
    PluginError,
    Released,
    ReleaseTask,
    Retry,
    RetryAfterError,
    SkipTask,
    TaskContext,
    Worker,
)
from dagnats_worker.hookspecs import Message
from dagnats_worker.testing import Ack, MemoryServer, MemoryTransport, Nak, WorkerHarness

# ---------------------------------------------------------------- control flow elsewhere

CONTROL = [EndTask(Completed(b"1")), DelayTask(SOON), SkipTask("elsewhere")]


@pytest.mark.parametrize("error", CONTROL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("event_type", ["step.started", "step.completed"])
async def test_only_before_the_handler_can_a_plugin_end_a_task(
    error: Exception, event_type: str
) -> None:
    async def pre_publish(message: Message) -> None:
        if message.event_type == event_type:
            raise error

    result = await run(shout, plugin_with(pre_publish=pre_publish))
    assert result.verdict == Nak(REDELIVER_AFTER)
    assert event_type not in types(result)


@pytest.mark.parametrize("error", CONTROL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hook", ["on_complete", "on_error"])
async def test_a_plugin_that_only_looks_on_cannot_end_a_task(error: Exception, hook: str) -> None:
    result = await run(fails, plugin_with(**{hook: raising(error)}), **MANAGED)
    assert result.verdict == Ack()
    assert types(result) == ["step.started", "step.failed"]


async def test_plugin_that_ends_a_task_with_what_is_no_outcome_gives_it_back() -> None:
    async def pre_handle() -> None:
        raise EndTask("done")  # type: ignore[arg-type]  # what is tried here

    result = await run(never, plugin_with(pre_handle=pre_handle))
    assert result.verdict == Nak(REDELIVER_AFTER)


async def test_plugin_that_releases_a_task_with_what_is_no_outcome_fails_it() -> None:
    async def handler(ctx: TaskContext) -> None:
        raise ReleaseTask("done")  # type: ignore[arg-type]  # what is tried here

    result = await run(handler, **MANAGED)
    assert types(result) == ["step.started", "step.failed"]
    assert "ReleaseTask takes an outcome" in (result.error or "")


async def test_plugin_below_a_handler_ends_the_task_whatever_the_handler_did() -> None:
    async def handler(ctx: TaskContext) -> None:
        raise ReleaseTask(Released("parked", SOON))

    result = await run(handler)
    assert result.verdict == Nak(SOON)
    assert types(result) == ["step.started", "step.released"]


# ---------------------------------------------------------------- pre_publish

TRACE = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "vendor=1",
}


def marking() -> Plugin[None]:
    async def pre_publish(ctx: TaskContext | None, message: Message) -> None:
        message.headers["X-Mark"] = f"{message.event_type or 'plain'} {ctx.run_id if ctx else '-'}"

    return plugin_with(pre_publish=pre_publish)


async def turn_once(ctx: TaskContext) -> None:
    await ctx.put_stream(b"chunk")
    if ctx.iteration == 0:
        ctx.continue_(1)
    else:
        ctx.fail_permanent("enough")


async def test_plugin_changes_the_headers_of_every_message_of_a_task() -> None:
    chunks: list[str] = []
    async with WorkerHarness({"shout": turn_once}, plugins=[marking()]) as harness:
        harness.server.listen("stream.>", lambda _s, _d, headers: chunks.append(headers["X-Mark"]))
        await harness.run("shout", run_id="r1")
        await harness.settled("r1")
        events = [one.headers["X-Mark"] for one in harness.server.messages(HISTORY, "history.r1")]
        (dead,) = harness.dead_letters()
        await harness.worker.stop()
    assert events == [
        "step.started r1",
        "step.continue r1",
        "step.started r1",
        "step.failed r1",
    ]
    assert chunks == ["plain r1"] * 2
    assert dead.headers["X-Mark"] == "plain r1"


async def test_plugin_changes_the_headers_of_the_next_turn_of_a_loop() -> None:
    seen: Notes = []

    async def look(ctx: TaskContext) -> None:
        seen.append(ctx.headers.get("X-Mark", "none"))
        if ctx.iteration == 0:
            ctx.continue_(1)

    async with WorkerHarness({"shout": look}, plugins=[marking()]) as harness:
        await harness.run("shout", run_id="r1")
        await harness.settled("r1")
    assert seen == ["none", "plain r1"]


async def test_plugin_changes_the_headers_of_what_a_client_sends() -> None:
    server = MemoryServer()
    async with Client(MemoryTransport(server), plugins=[marking()]) as client:
        run = await client.submit("shout", 1, headers={"X-Own": "kept"})
        await run.cancel()
    (task,) = server.messages(TASKS)
    assert (task.headers["X-Mark"], task.headers["X-Own"]) == ("plain -", "kept")
    (cancel,) = server.messages(HISTORY)
    assert cancel.headers["X-Mark"].endswith(" -")


async def test_plugin_may_give_a_message_other_headers_altogether() -> None:
    async def pre_publish(message: Message) -> None:
        message.headers = {**message.headers, "X-New": "yes"}

    server = MemoryServer()
    plugin = plugin_with(pre_publish=pre_publish)
    async with (
        WorkerHarness({"shout": shout}, plugins=[plugin], server=server) as harness,
        Client(MemoryTransport(server), plugins=[plugin]) as client,
    ):
        run = await client.submit("shout")
        await harness.settled(run.run_id)
        stored = [*server.messages(HISTORY), *server.messages(DEAD)]
    assert [message.headers.get("X-New") for message in stored] == ["yes", "yes"]


async def test_trace_of_a_plugin_is_copied_into_the_body_of_events() -> None:
    async def pre_publish(message: Message) -> None:
        message.headers.update(TRACE)

    async with WorkerHarness(
        {"shout": shout}, plugins=[plugin_with(pre_publish=pre_publish)]
    ) as harness:
        await harness.run("shout", run_id="r1", headers={"traceparent": "of the task"})
        stored = harness.server.messages(HISTORY, "history.r1")
    for message in stored:
        body = json.loads(message.data)
        assert body["trace_parent"] == message.headers["traceparent"] == TRACE["traceparent"]
        assert body["trace_state"] == message.headers["tracestate"] == TRACE["tracestate"]


@pytest.mark.parametrize("where", [{"headers": TRACE}, TRACE], ids=["headers", "body"])
async def test_trace_of_the_task_goes_on_where_no_plugin_changes_it(where: Any) -> None:
    async with WorkerHarness({"shout": shout}) as harness:
        await harness.run("shout", run_id="r1", **where)
        stored = harness.server.messages(HISTORY, "history.r1")
    assert len(stored) == 2
    for message in stored:
        body = json.loads(message.data)
        assert body["trace_parent"] == message.headers["traceparent"] == TRACE["traceparent"]
        assert body["trace_state"] == message.headers["tracestate"] == TRACE["tracestate"]


async def test_plugin_cannot_change_the_id_of_an_event() -> None:
    async def pre_publish(message: Message) -> None:
        message.headers["Nats-Msg-Id"] = "mine"

    result = await run(shout, plugin_with(pre_publish=pre_publish))
    assert types(result) == ["step.started", "step.completed"]


@pytest.mark.parametrize("event_type", ["step.started", "step.completed", "step.failed"])
async def test_error_before_a_message_is_sent_gives_the_task_back(event_type: str) -> None:
    async def pre_publish(message: Message) -> None:
        if message.event_type == event_type:
            raise ValueError("broken")

    handler = fails if event_type == "step.failed" else shout
    result = await run(handler, plugin_with(pre_publish=pre_publish), **MANAGED)
    assert result.verdict == Nak(REDELIVER_AFTER)
    assert event_type not in types(result)


async def test_error_before_a_chunk_is_sent_is_raised_to_the_handler() -> None:
    async def pre_publish(message: Message) -> None:
        if not message.event_type:
            raise ValueError("broken")

    async def stream(ctx: TaskContext) -> str:
        try:
            await ctx.put_stream(b"chunk")
        except PluginError as error:
            return str(error)
        return "sent"

    result = await run(stream, plugin_with(pre_publish=pre_publish))
    assert result.output == "plugin 'one', pre_publish: broken"


# ---------------------------------------------------------------- on_error


def answering(answer: Any) -> Callable[..., Any]:
    async def on_error() -> Any:
        return answer

    return on_error


@pytest.mark.parametrize(
    ("answer", "verdict", "event_type"),
    [
        (None, Ack(), "step.failed"),
        (Completed(b"1"), Ack(), "step.completed"),
        (Continued(b"1"), Ack(), "step.continue"),
        (Released("delay", SOON), Nak(SOON), "step.released"),
        (Paused("later", SOON), Nak(SOON), "step.released"),
        (Failed("other", "retry_after", SOON), Ack(), "step.failed"),
        (Failed("other", "non_retriable"), Ack(), "step.failed"),
    ],
)
async def test_plugin_answers_a_failure_with_another_outcome(
    answer: Any, verdict: Any, event_type: str
) -> None:
    result = await run(fails, plugin_with(on_error=answering(answer)), **MANAGED)
    assert result.verdict == verdict
    assert types(result) == ["step.started", event_type]
    if isinstance(answer, Failed):
        assert result.events[-1].payload["failure_type"] == answer.failure_type
        assert result.events[-1].payload["error"] == "other"


async def test_plugin_chooses_the_delay_where_there_is_no_engine() -> None:
    answer = Failed("busy", "retry_after", timedelta(minutes=7))
    result = await run(fails, plugin_with(on_error=answering(answer)))
    assert result.verdict == Nak(timedelta(minutes=7))


async def test_first_answer_that_is_not_none_wins() -> None:
    asked: Notes = []

    def plugin(name: str, answer: Outcome | None) -> Plugin[None]:
        async def on_error() -> Outcome | None:
            asked.append(name)
            return answer

        return plugin_with(name, on_error=on_error)

    result = await run(
        fails,
        plugin("silent", None),
        plugin("first", Completed(b'"first"')),
        plugin("second", Completed(b'"second"')),
        **MANAGED,
    )
    assert result.output == "first"
    assert asked[:2] == ["silent", "first"]
    assert "second" not in asked


@pytest.mark.parametrize("answer", [True, "done", 7, Completed])
async def test_answer_that_is_no_outcome_is_logged_and_the_failure_stands(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    result = await run(fails, plugin_with(on_error=answering(answer)), **MANAGED)
    assert types(result) == ["step.started", "step.failed"]
    assert "is not an outcome" in caplog.text


async def test_error_while_a_failure_is_looked_at_is_logged_and_the_failure_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = await run(fails, plugin_with(on_error=raising(KeyError("broken"))), **MANAGED)
    assert types(result) == ["step.started", "step.failed"]
    assert "'one'" in caplog.text
    assert "on_error" in caplog.text


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (lambda ctx: ctx.fail("text"), ("TaskError", "text", "retriable")),
        (lambda ctx: ctx.fail_permanent("text"), ("NonRetryableError", "text", "non_retriable")),
        (lambda ctx: ctx.fail(KeyError("k")), ("KeyError", "'k'", "retriable")),
        (lambda ctx: ctx.fail_retry_after("busy", SOON), ("TaskError", "busy", "retry_after")),
        (lambda ctx: ctx.fail(RetryAfterError("b", SOON)), ("RetryAfterError", "b", "retry_after")),
    ],
    ids=["text", "permanent", "exception", "later", "retry after"],
)
async def test_recorded_failure_is_shown_to_plugins_as_what_it_is(
    fail: Callable[[TaskContext], None], expected: tuple[str, str, str]
) -> None:
    seen: list[tuple[str, str, str]] = []

    async def on_error(error: BaseException, outcome: Failed) -> None:
        seen.append((type(error).__name__, str(error), outcome.failure_type))

    async def handler(ctx: TaskContext) -> None:
        fail(ctx)

    await run(handler, plugin_with(on_error=on_error), **MANAGED)
    assert seen[0] == expected


# ---------------------------------------------------------------- outcome_scope, on_complete


async def test_outcome_scope_is_around_the_storing_of_the_outcome() -> None:
    seen: list[tuple[str, int, str]] = []
    server = MemoryServer()

    @asynccontextmanager
    async def scope(ctx: TaskContext, outcome: Outcome) -> AsyncIterator[None]:
        def note(when: str) -> None:
            stored = len(server.messages(HISTORY, f"history.{ctx.run_id}"))
            seen.append((when, stored, type(outcome).__name__))

        note("before")
        yield
        note("after")

    async with WorkerHarness(
        {"shout": shout}, plugins=[plugin_with(outcome_scope=scope)], server=server
    ) as harness:
        run = await harness.submit("shout")
        await harness.client.run(run.run_id, "shout").result(timedelta(seconds=BOUND_S))
    assert seen == [("before", 1, "Completed"), ("after", 2, "Completed")]


async def test_outcome_scope_sees_that_the_outcome_could_not_be_stored() -> None:
    diary, server = Diary(), MemoryServer()

    async def break_the_history(ctx: TaskContext) -> None:
        server.faults.fail_publishes(1, f"history.{ctx.run_id}", code=10060)

    async with WorkerHarness(
        {"shout": break_the_history}, plugins=diary.plugins("outcome_scope"), server=server
    ) as harness:
        result = await harness.run("shout")
    assert result.verdict == Nak(REDELIVER_AFTER)
    assert diary.lines == left("PublishError", "Completed")


async def test_error_of_an_outcome_scope_is_logged_and_the_outcome_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ValueError("cannot be entered")
        yield

    result = await run(shout, plugin_with(outcome_scope=broken))
    assert (result.verdict, result.output) == (Ack(), "HELLO")
    assert "cannot be entered" in caplog.text


async def test_on_complete_is_called_between_the_outcome_and_the_ack() -> None:
    seen: list[tuple[list[str], int]] = []
    server = MemoryServer()

    async def on_complete(ctx: TaskContext) -> None:
        events = server.messages(HISTORY, f"history.{ctx.run_id}")
        seen.append(([json.loads(one.data)["type"] for one in events], len(server.messages(TASKS))))

    async with WorkerHarness(
        {"shout": shout}, plugins=[plugin_with(on_complete=on_complete)], server=server
    ) as harness:
        await harness.run("shout")
    assert seen == [(["step.started", "step.completed"], 1)]
    assert server.messages(TASKS) == []


async def test_on_complete_is_not_called_for_a_task_that_is_given_back() -> None:
    seen: Notes = []

    async def on_complete(outcome: Outcome) -> None:
        seen.append(type(outcome).__name__)

    worker = Worker(MemoryTransport(), plugins=[plugin_with(on_complete=on_complete)])
    worker.handle("shout", fails, retry=Retry(stop=stop_after_attempt(2), wait=wait_fixed(1)))
    async with WorkerHarness(worker) as harness:
        result = await harness.run("shout")
        assert isinstance(result.verdict, Nak)
        assert seen == []
        harness.clock.advance(result.verdict.delay)
        await harness.settled(result.run_id)
    assert seen == ["Failed"]


async def test_error_after_the_outcome_is_logged_and_the_task_is_acked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = await run(shout, plugin_with(on_complete=raising(ValueError("broken"))))
    assert (result.verdict, result.output) == (Ack(), "HELLO")
    assert "plugin 'one', on_complete: broken" in caplog.text


async def test_scope_reads_how_the_task_ended_and_how_long_it_took() -> None:
    seen: list[Any] = []

    @asynccontextmanager
    async def scope(ctx: TaskContext) -> AsyncIterator[None]:
        seen.extend([ctx.outcome, ctx.handler_duration])
        yield
        seen.extend([ctx.outcome, ctx.handler_duration])

    await run(shout, plugin_with(task_scope=scope))
    assert seen[:3] == [None, None, Completed(b'"HELLO"')]
    assert seen[3] >= timedelta(0)


# ---------------------------------------------------------------- child_scope


async def test_child_scope_is_around_the_handler_in_its_own_process() -> None:
    worker = Worker(MemoryTransport(), plugins=[Carrying("settings")])
    worker.handle("shout", what_was_carried, executor="process")
    async with WorkerHarness(worker) as harness:
        returned = await harness.run("shout", False, run_id="r1")  # noqa: FBT003 - the input
        failed = await harness.run("shout", True, run_id="r2")  # noqa: FBT003 - the input
    assert returned.output == "settings r1"
    assert failed.error == "carried settings r2"
