"""What a handler sees of its task and may do, in both of its shapes.

Method: contexts over one execution, without a worker; blocking calls come from a real thread onto
a real loop. Fake: what is streamed and renewed is noted by a fake of the events.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from execution_support import FakeEvents, make_execution

from dagnats_worker import (
    Capability,
    CapabilityMissingError,
    Completed,
    Continued,
    Failed,
    NonRetryableError,
    Paused,
    Released,
    RetryAfterError,
    SyncTaskContext,
    TaskContext,
    UsageError,
)
from dagnats_worker._context import BaseContext, TaskLogger
from dagnats_worker._execution import Execution
from dagnats_worker.hookspecs import CHECKPOINTS, SIGNALS

SOON = timedelta(seconds=3)
BOUND_S = 10


@pytest.fixture
def execution() -> Execution:
    return make_execution()


@pytest.fixture
def ctx(execution: Execution) -> TaskContext:
    return execution.context


# What the task is


def test_context_says_what_the_task_is() -> None:
    execution = make_execution(
        headers={"traceparent": "t"},
        deliveries=4,
        attempt=3,
        iteration=2,
        metadata={"team": "blue"},
        workflow_name="hello",
        input={"a": [1, None]},
    )
    for ctx in (execution.context, execution.context.sync()):
        assert (ctx.run_id, ctx.step_id, ctx.task_id) == ("run-1", "step.one", "run-1.step.one")
        assert (ctx.task_type, ctx.worker_id) == ("shout", "worker-1")
        assert (ctx.attempt, ctx.retry_count, ctx.iteration, ctx.deliveries) == (3, 2, 2, 4)
        assert ctx.metadata == {"team": "blue"}
        assert ctx.headers == ctx.trace_headers == {"traceparent": "t"}
        assert ctx.workflow_name == "hello"
        assert ctx.json() == {"a": [1, None]}
        assert ctx.input == b'{"a": [1, null]}'


def test_attempt_is_the_delivery_where_the_message_has_none() -> None:
    assert make_execution(deliveries=1).context.retry_count == 0
    assert make_execution(deliveries=3).context.attempt == 3


def test_no_input_is_no_bytes_and_none(ctx: TaskContext) -> None:
    assert (ctx.input, ctx.json()) == (b"", None)


def test_null_is_an_input() -> None:
    ctx = make_execution(input=None).context
    assert (ctx.input, ctx.json()) == (b"null", None)


def test_how_the_task_ends_is_not_known_before(ctx: TaskContext) -> None:
    assert (ctx.outcome, ctx.handler_duration) == (None, None)


def test_log_carries_what_the_task_is(ctx: TaskContext, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dagnats_worker.task"):
        ctx.log.info("half way", extra={"done": 50})
    (record,) = caplog.records
    found = {name: getattr(record, name) for name in ("run_id", "step_id", "task_type", "attempt")}
    assert found == {"run_id": "run-1", "step_id": "step.one", "task_type": "shout", "attempt": 1}
    assert record.done == 50  # type: ignore[attr-defined]  # put there by ``extra``
    assert isinstance(ctx.log, TaskLogger)


# Recording an outcome


@pytest.mark.parametrize(
    ("value", "output"),
    [
        (None, b"null"),
        (7, b"7"),
        ("text", b'"text"'),
        ({"a": 1}, b'{"a":1}'),
        (b'{ "a": 1 }', b'{ "a": 1 }'),
        (bytearray(b"[]"), b"[]"),
        (memoryview(b"1"), b"1"),
        ([], b"[]"),
    ],
)
def test_complete_and_continue_take_any_json(value: Any, output: bytes) -> None:
    completing, continuing = make_execution().context, make_execution().context
    completing.complete(value)
    continuing.continue_(value)
    assert completing.outcome == Completed(output)
    assert continuing.outcome == Continued(output)


def test_without_an_argument_there_is_no_payload_at_all() -> None:
    completing, continuing = make_execution().context, make_execution().context
    completing.complete()
    continuing.continue_()
    assert completing.outcome == Completed(b"")
    assert continuing.outcome == Continued(b"")


@pytest.mark.parametrize(
    "value", [b"", b"not json", b'"\xff"', float("nan"), "\ud800", object(), {1j: 2}, [{"a": {1j}}]]
)
def test_what_is_not_json_is_an_error_at_the_call_and_nothing_is_recorded(
    ctx: TaskContext, value: Any
) -> None:
    for record in (ctx.complete, ctx.continue_):
        with pytest.raises(UsageError):
            record(value)
        assert ctx.outcome is None
    ctx.complete("afterwards")
    assert ctx.outcome == Completed(b'"afterwards"')


@pytest.mark.parametrize("name", ["complete", "continue_"])
def test_two_outputs_are_an_error_at_the_call(ctx: TaskContext, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}\(\) takes one output at most, got 2"):
        getattr(ctx, name)(1, 2)
    assert ctx.outcome is None


def test_failure_with_a_text_is_retriable(ctx: TaskContext) -> None:
    ctx.fail("no luck")
    assert ctx.outcome == Failed("no luck", "retriable")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ValueError("no"), Failed("no", "retriable")),
        (NonRetryableError("never"), Failed("never", "non_retriable")),
        (RetryAfterError("busy", SOON), Failed("busy", "retry_after", SOON)),
    ],
)
def test_failure_with_an_exception_is_classified_as_if_it_were_raised(
    ctx: TaskContext, error: Exception, failure: Failed
) -> None:
    ctx.fail(error)
    assert ctx.outcome == failure
    assert isinstance(ctx.outcome, Failed)
    assert ctx.outcome.exception is error


@pytest.mark.parametrize("error", ["no luck", ValueError("no luck")])
def test_permanent_failure_takes_a_text_or_an_exception(ctx: TaskContext, error: Any) -> None:
    ctx.fail_permanent(error)
    assert ctx.outcome == Failed("no luck", "non_retriable")
    assert isinstance(ctx.outcome, Failed)
    assert ctx.outcome.exception is (error if isinstance(error, Exception) else None)


@pytest.mark.parametrize("error", ["busy", ValueError("busy"), RetryAfterError("busy", SOON * 9)])
def test_failure_with_a_delay_takes_a_text_or_an_exception(ctx: TaskContext, error: Any) -> None:
    ctx.fail_retry_after(error, SOON)
    assert ctx.outcome == Failed("busy", "retry_after", SOON)


@pytest.mark.parametrize("delay", [3, None, "3s"])
def test_delay_that_is_no_timedelta_is_an_error_at_the_call(ctx: TaskContext, delay: Any) -> None:
    with pytest.raises(TypeError, match="timedelta"):
        ctx.fail_retry_after("busy", delay)
    assert ctx.outcome is None


@pytest.mark.parametrize("error", [None, 7, b"text"])
def test_error_that_is_neither_text_nor_exception_is_an_error_at_the_call(
    ctx: TaskContext, error: Any
) -> None:
    for fail in (ctx.fail, ctx.fail_permanent, lambda one: ctx.fail_retry_after(one, SOON)):
        with pytest.raises(UsageError, match="an exception or a text"):
            fail(error)
        assert ctx.outcome is None


def test_plugin_records_any_outcome(ctx: TaskContext) -> None:
    ctx.record(Paused("later", SOON))
    assert ctx.outcome == Paused("later", SOON)


@pytest.mark.parametrize("value", [None, "completed", Completed, {"output": 1}])
def test_what_is_no_outcome_cannot_be_recorded(ctx: TaskContext, value: Any) -> None:
    with pytest.raises(UsageError, match="is not an outcome"):
        ctx.record(value)
    assert ctx.outcome is None


def test_first_outcome_stands_and_the_second_is_an_error_that_is_logged_too(
    ctx: TaskContext, caplog: pytest.LogCaptureFixture
) -> None:
    ctx.complete(1)
    with pytest.raises(UsageError, match="has the outcome Completed already; Failed is ignored"):
        ctx.fail("too late")
    assert ctx.outcome == Completed(b"1")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "Failed is ignored" in record.message


def test_both_shapes_record_into_the_same_task(ctx: TaskContext) -> None:
    ctx.sync().complete(1)
    assert ctx.outcome == Completed(b"1")
    with pytest.raises(UsageError):
        ctx.record(Released("drain"))


# What plugins provide

WORD: Capability[str] = Capability("words", install="dagnats-words")


def test_capability_is_made_once_per_task_on_first_use() -> None:
    made: list[BaseContext] = []

    def factory(ctx: BaseContext) -> str:
        made.append(ctx)
        return f"word {len(made)}"

    first = make_execution(capabilities={WORD: factory}).context
    assert made == []
    assert (first.use(WORD), first.sync().use(WORD), first.use(WORD)) == ("word 1",) * 3
    assert made == [first]
    second = make_execution(capabilities={WORD: factory}).context
    assert second.use(WORD) == "word 2"


def test_capability_whose_factory_fails_is_made_again() -> None:
    answers = iter([None, "word"])

    def factory(_: BaseContext) -> str:
        answer = next(answers)
        if answer is None:
            raise ValueError("not yet")
        return answer

    ctx = make_execution(capabilities={WORD: factory}).context
    with pytest.raises(ValueError, match="not yet"):
        ctx.use(WORD)
    assert ctx.use(WORD) == "word"


def test_capability_that_nobody_provides_says_what_to_install(ctx: TaskContext) -> None:
    with pytest.raises(CapabilityMissingError, match=r"'words': pip install 'dagnats-words'"):
        ctx.use(WORD)


def test_capabilities_are_the_same_only_if_they_are_the_same_object() -> None:
    ctx = make_execution(capabilities={WORD: lambda _: "word"}).context
    with pytest.raises(CapabilityMissingError):
        ctx.use(Capability("words", install="dagnats-words"))


CALLS = {
    "checkpoint": ((b"state",), "dagnats-worker[checkpoint]"),
    "load_checkpoint": ((), "dagnats-worker[checkpoint]"),
    "pause": (("later", SOON), "dagnats-worker[checkpoint]"),
    "wait_for_signal": (("go", SOON), "dagnats-worker[signals]"),
    "send_signal": (("run-2", "go", 1), "dagnats-worker[signals]"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_call_of_a_plugin_that_is_not_there_says_what_to_install(
    ctx: TaskContext, name: str
) -> None:
    arguments, install = CALLS[name]
    with pytest.raises(CapabilityMissingError) as caught:
        await getattr(ctx, name)(*arguments)
    assert f"pip install '{install}'" in str(caught.value)
    with pytest.raises(CapabilityMissingError):
        getattr(ctx.sync(), name)(*arguments)


class NotedCalls:
    """Provides both capabilities of the core, and notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **more: Any) -> bytes:
            self.calls.append((name, *arguments))
            assert not any(more.values()), "nothing is asked for that was not said"
            self.threads.add(threading.get_ident())
            return name.encode()

        return call


@pytest.mark.parametrize("name", CALLS)
async def test_call_of_a_plugin_reaches_it_on_the_loop(name: str) -> None:
    provided = NotedCalls()
    ctx = make_execution(
        loop=asyncio.get_running_loop(),
        capabilities={CHECKPOINTS: lambda _: provided, SIGNALS: lambda _: provided},
    ).context
    arguments, _ = CALLS[name]
    from_the_loop = await getattr(ctx, name)(*arguments)
    async with asyncio.timeout(BOUND_S):
        from_a_thread = await asyncio.to_thread(getattr(ctx.sync(), name), *arguments)
    assert from_the_loop == from_a_thread
    assert provided.calls == [(name, *arguments)] * 2
    assert provided.threads == {threading.get_ident()}


# Streaming and heartbeats


async def test_chunks_go_as_bytes_or_as_json() -> None:
    events = FakeEvents()
    ctx = make_execution(events=events, loop=asyncio.get_running_loop()).context
    chunks = (b"\xff raw", bytearray(b"raw"), memoryview(b"view"), "text", {"a": 1}, None)
    for chunk in chunks:
        await ctx.put_stream(chunk)
    expected = [b"\xff raw", b"raw", b"view", b'"text"', b'{"a":1}', b"null"]
    assert events.chunks == expected
    async with asyncio.timeout(BOUND_S):
        for chunk in chunks:
            await asyncio.to_thread(ctx.sync().put_stream, chunk)
    assert events.chunks == expected * 2


async def test_chunk_that_is_not_json_is_an_error_at_the_call(ctx: TaskContext) -> None:
    with pytest.raises(UsageError):
        await ctx.put_stream(float("inf"))


async def test_heartbeat_renews_the_lease() -> None:
    events = FakeEvents()
    ctx = make_execution(events=events, loop=asyncio.get_running_loop()).context
    await ctx.heartbeat()
    async with asyncio.timeout(BOUND_S):
        await asyncio.to_thread(ctx.sync().heartbeat)
    assert events.heartbeats == 2


# Cancellation, and what only one of the shapes has


def test_cancellation_is_seen_by_whoever_looks_before_and_after(execution: Execution) -> None:
    early = execution.context.cancelled, execution.context.sync().cancelled
    assert not any(event.is_set() for event in early)
    execution.set_cancelled()
    assert all(event.is_set() for event in early)
    late = make_execution()
    late.set_cancelled()
    assert late.context.cancelled.is_set()
    assert late.context.sync().cancelled.is_set()


def test_cancelled_is_an_event_of_the_handlers_world(ctx: TaskContext) -> None:
    assert isinstance(ctx.cancelled, asyncio.Event)
    assert isinstance(ctx.sync().cancelled, threading.Event)
    assert ctx.cancelled is ctx.cancelled
    assert ctx.sync().cancelled is ctx.sync().cancelled


async def test_blocking_handler_runs_something_async_on_the_loop() -> None:
    async def where(answer: int) -> tuple[int, int]:
        return answer, threading.get_ident()

    async def fail() -> None:
        raise KeyError("inside")

    ctx = make_execution(loop=asyncio.get_running_loop()).context.sync()
    later: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    later.set_result("a future too")
    async with asyncio.timeout(BOUND_S):
        assert await asyncio.to_thread(ctx.run, where(7)) == (7, threading.get_ident())
        assert await asyncio.to_thread(ctx.run, later) == "a future too"
        with pytest.raises(KeyError, match="inside"):
            await asyncio.to_thread(ctx.run, fail())


def test_carrier_and_the_abandoned_thread_belong_to_the_task(ctx: TaskContext) -> None:
    ctx.carrier["traceparent"] = "t"
    assert ctx.sync().carrier == {"traceparent": "t"}
    thread: Future[Any] = Future()
    ctx.abandoned = thread
    assert ctx.sync().abandoned is thread
    ctx.abandoned = None
    assert ctx.abandoned is None


# The two shapes

ONLY_ASYNC = {"sync"}
ONLY_BLOCKING = {"run"}


def public_names(kind: type[Any]) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_both_shapes_have_the_same_names_but_for_those_that_are_listed() -> None:
    of_async, of_blocking = public_names(TaskContext), public_names(SyncTaskContext)
    assert of_async - of_blocking == ONLY_ASYNC
    assert of_blocking - of_async == ONLY_BLOCKING


@pytest.mark.parametrize("name", sorted(public_names(TaskContext) & public_names(SyncTaskContext)))
def test_name_is_the_same_thing_in_both_shapes(name: str) -> None:
    of_async, of_blocking = getattr(TaskContext, name), getattr(SyncTaskContext, name)
    assert type(of_async) is type(of_blocking)
    if name == "cancelled":
        return  # an event of asyncio and one of threading
    if isinstance(of_async, property):
        assert of_async is of_blocking
        return
    assert inspect.signature(of_async) == inspect.signature(of_blocking)
    assert inspect.getdoc(of_async) == inspect.getdoc(of_blocking)
    assert not inspect.iscoroutinefunction(of_blocking)


@pytest.mark.parametrize("kind", [TaskContext, SyncTaskContext])
def test_context_takes_no_other_attributes(kind: type[BaseContext], execution: Execution) -> None:
    with pytest.raises(AttributeError):
        kind(execution).note = "mine"  # type: ignore[attr-defined]  # what is tried here
