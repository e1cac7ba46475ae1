"""What each exception does to the message of the task that it ends: the table of ``errors.py``.

Method: each row is raised in its place inside a real worker, and what NATS is told and holds
afterwards is compared. Fake: the NATS server, which is the in-memory one of
``dagnats_worker.testing``, and its faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hook_support import REDELIVER_AFTER, SOON, plugin_with, raising, shout, types
from support import eventually

from dagnats_worker import (
    Capability,
    Client,
    Completed,
    Failed,
    Plugin,
    Released,
    TaskContext,
    Worker,
    WorkerConfig,
    errors,
)
from dagnats_worker.errors import (
    CapabilityMissingError,
    ConnectError,
    DagnatsError,
    DecodeError,
    DelayTask,
    EndTask,
    EngineError,
    KeyValueError,
    NonRetryableError,
    PluginError,
    PublishError,
    ReleaseTask,
    RetryAfterError,
    RunCancelledError,
    SignalTimeoutError,
    SkipTask,
    StartError,
    SupersededError,
    TaskError,
    TaskFailedError,
    TransportError,
    UsageError,
)
from dagnats_worker.hookspecs import Message
from dagnats_worker.testing import (
    Ack,
    MemoryServer,
    MemoryTransport,
    Nak,
    TaskResult,
    Term,
    WorkerHarness,
)

BOUND = timedelta(seconds=10)
REFUSED = 10060
"""A code of the server that is no passing trouble, so nothing is tried again."""

GIVEN_BACK = Nak(REDELIVER_AFTER)
STARTED, COMPLETED, FAILED = "step.started", "step.completed", "step.failed"
RELEASED = "step.released"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        place: What raises it.
        error: A new exception for each test.
        verdict: What NATS is told of the message.
        events: Types of what was published, in order.
        failure_type: Of the last event, where it is a failure.
        managed: An engine manages the run.
        dead_letters: How many copies of the task are kept.
    """

    place: str
    error: Callable[[], BaseException]
    verdict: Ack | Nak | Term
    events: tuple[str, ...] = ()
    failure_type: str | None = None
    managed: bool = False
    dead_letters: int = 0

    def __str__(self) -> str:
        run = "-managed" if self.managed else ""
        return f"{self.place}{run}-{type(self.error()).__name__}"


def told(error: Callable[[], BaseException], failure_type: str) -> Row:
    """Out of a handler of a managed run: the engine is told, and the message is acked."""
    return Row("handler", error, Ack(), (STARTED, FAILED), failure_type, managed=True)


def final(error: Callable[[], BaseException]) -> Row:
    """Out of a handler without an engine: it fails for good."""
    events = (STARTED, FAILED)
    return Row("handler", error, Ack(), events, "non_retriable", dead_letters=1)


def given_back(place: str, error: Callable[[], BaseException]) -> Row:
    """Nothing is published, and the task comes again."""
    return Row(place, error, GIVEN_BACK)


class OddError(BaseException):
    """What only programs that end themselves raise."""


ANY_OTHER: list[Callable[[], BaseException]] = [
    lambda: ValueError("a bug"),
    lambda: DagnatsError("ours"),
    lambda: TaskError("on purpose"),
    lambda: TransportError("no answer"),
    lambda: ConnectError("no server"),
    lambda: PublishError("refused", REFUSED),
    lambda: KeyValueError("no bucket"),
    lambda: SignalTimeoutError("too late"),
    lambda: DecodeError("not JSON"),
    lambda: PluginError("broken"),
    lambda: StartError("cannot start"),
    lambda: EngineError("refused"),
    lambda: TaskFailedError("another run", run_id="r", failure_type="non_retriable"),
    lambda: RunCancelledError("another run"),
    lambda: EndTask(Completed(b"1")),
    lambda: DelayTask(SOON),
    lambda: SkipTask("elsewhere"),
    lambda: SystemExit(3),
    KeyboardInterrupt,
    asyncio.CancelledError,
    lambda: OddError("odd"),
]
"""Out of a handler, each of them is a retriable failure."""

HOPELESS: list[Callable[[], BaseException]] = [
    lambda: NonRetryableError("never"),
    lambda: UsageError("wrong call"),
    lambda: CapabilityMissingError("install it"),
]

BEFORE_THE_HANDLER: list[Callable[[], BaseException]] = [
    lambda: ValueError("a bug"),
    lambda: NonRetryableError("never"),
    lambda: RetryAfterError("busy", SOON),
    lambda: TransportError("no answer"),
    lambda: PluginError("broken"),
    lambda: UsageError("wrong call"),
    lambda: CapabilityMissingError("install it"),
    lambda: ReleaseTask(Released("drain")),
]
"""Out of a hook, each of them gives the task back."""

CONTROL: list[Callable[[], BaseException]] = [
    lambda: EndTask(Completed(b"1")),
    lambda: DelayTask(SOON),
    lambda: SkipTask("elsewhere"),
]

ROWS = [
    *[told(error, "retriable") for error in ANY_OTHER],
    *[told(error, "non_retriable") for error in HOPELESS],
    told(lambda: RetryAfterError("busy", SOON), "retry_after"),
    *[final(error) for error in HOPELESS],
    Row("handler", lambda: RetryAfterError("busy", SOON), Nak(SOON), (STARTED, RELEASED)),
    Row("handler", lambda: ReleaseTask(Released("parked", SOON)), Nak(SOON), (STARTED, RELEASED)),
    Row("handler", lambda: ReleaseTask(Completed(b"1")), Ack(), (STARTED, COMPLETED)),
    Row("pre_handle", lambda: EndTask(Completed(b"1")), Ack(), (STARTED, COMPLETED)),
    Row(
        "pre_handle",
        lambda: EndTask(Failed("no", "non_retriable")),
        Ack(),
        (STARTED, FAILED),
        "non_retriable",
        managed=True,
    ),
    Row("pre_handle", lambda: DelayTask(SOON), Nak(SOON)),
    Row("pre_handle", lambda: SkipTask("elsewhere"), Ack()),
    *[given_back("pre_handle", error) for error in BEFORE_THE_HANDLER],
    *[given_back("task_scope", error) for error in [*BEFORE_THE_HANDLER, *CONTROL]],
    *[given_back("pre_publish", error) for error in [*BEFORE_THE_HANDLER, *CONTROL]],
]


def broken_scope(error: BaseException) -> Callable[..., AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def scope() -> AsyncIterator[None]:
        raise error
        yield

    return scope


def broken_before_the_start(error: BaseException) -> Callable[..., Any]:
    async def pre_publish(message: Message) -> None:
        if message.event_type == STARTED:
            raise error

    return pre_publish


def plugins_of(row: Row) -> list[Plugin[None]]:
    match row.place:
        case "handler":
            return []
        case "pre_handle":
            return [plugin_with(pre_handle=raising(row.error()))]
        case "task_scope":
            return [plugin_with(task_scope=broken_scope(row.error()))]
        case "pre_publish":
            return [plugin_with(pre_publish=broken_before_the_start(row.error()))]
    raise AssertionError(f"there is no place {row.place!r}")


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_exception_in_its_place_does_this_to_the_message(row: Row) -> None:
    async def handler(ctx: TaskContext) -> None:
        if row.place != "handler":
            pytest.fail("this handler is not to be run")
        raise row.error()

    fields = {"workflow_name": "hello"} if row.managed else {}
    async with WorkerHarness({"shout": handler}, plugins=plugins_of(row)) as harness:
        result = await harness.run("shout", timeout=BOUND, **fields)
        dead_letters = len(harness.dead_letters())
        await harness.run("shout", timeout=BOUND, **fields)  # the worker goes on
    assert result.verdict == row.verdict
    assert tuple(types(result)) == row.events
    assert dead_letters == row.dead_letters
    if row.failure_type is not None:
        assert result.events[-1].payload["failure_type"] == row.failure_type


@pytest.mark.parametrize("error", ANY_OTHER, ids=lambda error: type(error()).__name__)
async def test_any_other_exception_is_tried_again_where_there_is_no_engine(
    error: Callable[[], BaseException],
) -> None:
    async def handler(ctx: TaskContext) -> None:
        raise error()

    async with WorkerHarness({"shout": handler}) as harness:
        result = await harness.run("shout", timeout=BOUND)
        assert harness.dead_letters() == []
    assert isinstance(result.verdict, Nak)
    assert result.verdict.delay >= timedelta(seconds=1)
    assert types(result) == [STARTED, RELEASED]


def test_every_exception_of_the_tree_has_a_row() -> None:
    rows = {type(row.error()).__name__ for row in ROWS}
    assert rows | {"SupersededError"} >= set(errors.__all__)


@pytest.mark.parametrize("fields", [{}, {"workflow_name": "hello"}], ids=["alone", "managed"])
async def test_task_that_somebody_newer_has_is_left_alone(fields: dict[str, Any]) -> None:
    async def handler(ctx: TaskContext) -> str:
        if ctx.deliveries > 1:
            return "the newer one"
        ctx.complete("the older one")
        raise ValueError("wrapped") from SupersededError("somebody newer has it")

    async with WorkerHarness({"shout": handler}) as harness:
        run = await harness.submit("shout", **fields)
        await eventually(
            lambda: harness.events(run.run_id) and not harness.worker.handling, what="the end"
        )
        assert [event.type for event in harness.events(run.run_id)] == [STARTED]
        harness.faults.redeliver()
        result = await harness.settled(run.run_id)
    assert (result.verdict, result.deliveries, result.output) == (Ack(), 2, "the newer one")
    assert types(result) == [STARTED, STARTED, COMPLETED]


# NATS itself fails


async def test_task_whose_start_cannot_be_stored_is_given_back() -> None:
    async with WorkerHarness({"shout": shout}) as harness:
        harness.faults.fail_publishes(1, "history.>", code=REFUSED)
        result = await harness.run("shout")
    assert (result.verdict, types(result)) == (GIVEN_BACK, [])


async def run_with_fault(break_it: Callable[[MemoryServer], None], **fields: Any) -> TaskResult:
    """Run a task whose handler breaks the server before it returns or fails."""
    server = MemoryServer()

    async def handler(ctx: TaskContext) -> None:
        break_it(server)
        if ctx.json():
            raise ValueError("no luck")

    async with WorkerHarness({"shout": handler}, server=server) as harness:
        return await harness.run("shout", **fields)


@pytest.mark.parametrize("fails", [True, False])
async def test_task_whose_outcome_cannot_be_stored_is_given_back(*, fails: bool) -> None:
    result = await run_with_fault(
        lambda server: server.faults.fail_publishes(1, "history.>", code=REFUSED), input=fails
    )
    assert (result.verdict, types(result)) == (GIVEN_BACK, [STARTED])


async def test_failed_task_is_given_back_where_nobody_knows_who_manages_its_run() -> None:
    result = await run_with_fault(lambda server: server.faults.fail_reads(1), input=1)
    assert (result.verdict, types(result)) == (GIVEN_BACK, [STARTED])


async def test_task_that_comes_again_is_given_back_while_its_past_cannot_be_read() -> None:
    runs: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        runs.append(ctx.deliveries)

    async with WorkerHarness({"shout": handler}) as harness:
        harness.faults.lose_acks()
        run = await harness.submit("shout")
        await run.result(BOUND)
        await eventually(lambda: not harness.worker.handling, what="the ack is sent, and lost")
        harness.faults.fail_reads(1)
        harness.faults.redeliver()
        result = await harness.settled(run.run_id)
        assert result.verdict == GIVEN_BACK
        harness.clock.advance(REDELIVER_AFTER)
        result = await harness.settled(run.run_id)
    assert result.verdict == Ack()
    assert runs == [1]


# What cannot be decoded


@pytest.mark.parametrize("data", [b"not JSON", b'{"run_id":"r1"}', b'{"run_id":7}', b"\xff"])
async def test_message_that_cannot_be_decoded_is_terminated_and_kept(data: bytes) -> None:
    async with WorkerHarness({"shout": shout}) as harness:
        harness.server.publish("task.shout.r1", data)
        result = await harness.settled("r1")
        (dead,) = harness.dead_letters()
        await harness.run("shout")
    assert isinstance(result.verdict, Term)
    assert result.verdict.reason.startswith("task message: ")
    assert types(result) == []
    assert dead.data == data


async def test_message_that_cannot_be_kept_is_not_terminated() -> None:
    async with WorkerHarness({"shout": shout}) as harness:
        harness.faults.fail_publishes(1, "dead.>", code=REFUSED)
        harness.server.publish("task.shout.r1", b"not JSON")
        result = await harness.settled("r1")
        assert result.verdict == GIVEN_BACK
        harness.clock.advance(REDELIVER_AFTER)
        result = await harness.settled("r1")
    assert isinstance(result.verdict, Term)


# At the start


async def refused_start(worker: Worker) -> DagnatsError:
    with pytest.raises(DagnatsError) as caught:
        await worker.start()
    return caught.value


async def test_worker_does_not_start_without_its_streams() -> None:
    worker = Worker(MemoryTransport(MemoryServer(without=["TASK_QUEUES"])), plugins=[])
    worker.handle("shout", shout)
    error = await refused_start(worker)
    assert isinstance(error, StartError)
    assert "dagnats-worker setup" in str(error)


async def test_worker_does_not_start_without_a_capability_that_a_handler_needs() -> None:
    numbers: Capability[int] = Capability("numbers", install="dagnats-numbers")
    worker = Worker(MemoryTransport(), plugins=[])
    worker.handle("shout", shout, needs=[numbers])
    error = await refused_start(worker)
    assert isinstance(error, CapabilityMissingError)
    assert "pip install 'dagnats-numbers'" in str(error)


@pytest.mark.parametrize("error", [ValueError("broken"), StartError("cannot"), SkipTask("x")])
@pytest.mark.parametrize("hook", ["worker_scope", "open_source"])
async def test_worker_does_not_start_with_a_plugin_that_fails(error: Exception, hook: str) -> None:
    hooks = {"worker_scope": broken_scope(error), "open_source": raising(error)}
    worker = Worker(MemoryTransport(), plugins=[plugin_with(**{hook: hooks[hook]})])
    worker.handle("shout", shout)
    refused = await refused_start(worker)
    assert isinstance(refused, PluginError)
    assert "plugin 'one'" in str(refused)
    assert hook in str(refused)


async def test_worker_does_not_start_without_a_server() -> None:
    config = WorkerConfig(connect_timeout=timedelta(milliseconds=100))
    worker = Worker("nats://127.0.0.1:1", plugins=[], config=config)
    worker.handle("shout", shout)
    assert isinstance(await refused_start(worker), ConnectError)


# To a client


async def test_client_is_told_how_a_run_ended() -> None:
    async def never(ctx: TaskContext) -> None:
        raise NonRetryableError("never")

    async with WorkerHarness({"shout": never}) as harness:
        run = await harness.client.submit("shout")
        with pytest.raises(TaskFailedError, match="never") as caught:
            await run.result(BOUND)
        assert caught.value.run_id == run.run_id
        assert caught.value.step_id == "shout"
        assert caught.value.failure_type == "non_retriable"
        cancelled = await harness.client.submit("whisper")
        with pytest.raises(TimeoutError):
            await cancelled.result(timedelta(milliseconds=20))
        await cancelled.cancel()
        with pytest.raises(RunCancelledError, match=cancelled.run_id):
            await cancelled.result(BOUND)


async def test_client_is_told_what_the_engine_says() -> None:
    server = MemoryServer()
    async with Client(MemoryTransport(server), plugins=[]) as client:
        with pytest.raises(TransportError, match="no DagNats engine answers"):
            await client.start_workflow("hello")
        server.respond("api.runs.start", lambda _subject, _data: b'{"error":"no such workflow"}')
        with pytest.raises(EngineError, match="no such workflow"):
            await client.start_workflow("hello")
