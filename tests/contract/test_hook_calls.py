"""When hooks are called, and in which order; scopes, and what may end a task before its handler.

Method: plugins as anybody writes them, in a real worker; what they note is compared with what they
were promised. Fake: the NATS server, which is the in-memory one of ``dagnats_worker.testing``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from hook_support import (
    BOUND_S,
    MANAGED,
    REDELIVER_AFTER,
    SOON,
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
)
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import (
    Completed,
    DelayTask,
    EndTask,
    Failed,
    NonRetryableError,
    Outcome,
    Paused,
    Plugin,
    PluginError,
    ReleaseTask,
    Retry,
    SkipTask,
    SyncTaskContext,
    TaskContext,
    Worker,
    WorkerConfig,
    hookimpl,
)
from dagnats_worker.hookspecs import Message, WorkerFacade
from dagnats_worker.testing import Ack, MemoryServer, MemoryTransport, Nak, WorkerHarness

# ------------------------------------------------------------------------- the walk of one task


class Noting(Plugin[None]):
    """Implements every hook of the worker's process, and notes each call."""

    notes: Notes

    def note(self, what: str) -> None:
        self.notes.append(f"{self.name} {what}")

    @asynccontextmanager
    async def noted(self, what: str) -> AsyncIterator[None]:
        self.note(f"{what} [")
        try:
            yield
        finally:
            self.note(f"{what} ]")

    @hookimpl
    def worker_scope(self, worker: WorkerFacade) -> AbstractAsyncContextManager[None]:
        return self.noted("worker_scope")

    @hookimpl
    async def open_source(self) -> None:
        self.note("open_source")

    @hookimpl
    def task_scope(self, ctx: TaskContext) -> AbstractAsyncContextManager[None]:
        return self.noted("task_scope")

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        self.note("pre_handle")

    @hookimpl
    async def pre_publish(self, message: Message) -> None:
        self.note(f"pre_publish {message.event_type or message.subject.split('.')[0]}")

    @hookimpl
    async def on_error(self, error: BaseException) -> None:
        self.note(f"on_error {error}")

    @hookimpl
    def outcome_scope(self, outcome: Outcome) -> AbstractAsyncContextManager[None]:
        return self.noted(f"outcome_scope {type(outcome).__name__}")

    @hookimpl
    async def on_complete(self, outcome: Outcome) -> None:
        self.note(f"on_complete {type(outcome).__name__}")


def noting(name: str, notes: Notes) -> Noting:
    plugin: Noting = type("Named", (Noting,), {"name": name})()
    plugin.notes = notes
    return plugin


def both(*lines: str) -> Notes:
    """Each line for the outer and then for the inner plugin."""
    return [f"{plugin} {line}" for line in lines for plugin in ("outer", "inner")]


def nested(what: str, *inside: str) -> Notes:
    """A scope of the outer plugin around one of the inner one around the rest."""
    leaving = [f"inner {what} ]", f"outer {what} ]"]
    return [f"outer {what} [", f"inner {what} [", *inside, *leaving]


QUICK = Retry(stop=stop_after_attempt(2), wait=wait_fixed(1))


async def run_noted(
    handler: Callable[..., Any], *, settled: int = 0, workflow_name: str = ""
) -> Notes:
    """What both plugins note while a worker starts, runs one task, and stops.

    Args:
        settled: How often the task is settled after the first time.
    """
    notes: Notes = []
    plugins = [noting("outer", notes), noting("inner", notes)]
    worker = Worker(MemoryTransport(), plugins=plugins)

    async def noted(ctx: TaskContext) -> Any:
        notes.append("handler")
        return await handler(ctx)

    worker.handle("shout", noted, retry=QUICK, concurrency=1)
    async with WorkerHarness(worker) as harness:
        harness.server.on_settled(lambda one: notes.append(type(one.verdict).__name__))
        result = await harness.run("shout", workflow_name=workflow_name)
        for _ in range(settled):
            if isinstance(result.verdict, Nak):
                harness.clock.advance(result.verdict.delay)
            result = await harness.settled(result.run_id)
    return notes


def around(*task: str) -> Notes:
    """The hooks of the worker around those of one task."""
    leaving = ["inner worker_scope ]", "outer worker_scope ]"]
    return [
        *nested("worker_scope")[:2],
        *both("open_source"),
        *task,
        *leaving,
    ]


STARTED = both("pre_handle", "pre_publish step.started")


def ending(kind: str, event_type: str) -> Notes:
    return nested(f"outcome_scope {kind}", *both(f"pre_publish {event_type}"))


async def test_hooks_of_a_task_that_succeeds() -> None:
    assert await run_noted(shout) == around(
        *nested(
            "task_scope",
            *STARTED,
            "handler",
            *ending("Completed", "step.completed"),
            *both("on_complete Completed"),
        ),
        "Ack",
    )


async def test_hooks_of_a_managed_task_that_fails() -> None:
    async def fail(ctx: TaskContext) -> None:
        raise ValueError("no luck")

    assert await run_noted(fail, workflow_name="hello") == around(
        *nested(
            "task_scope",
            *STARTED,
            "handler",
            *both("on_error no luck"),
            *ending("Failed", "step.failed"),
            *both("on_complete Failed"),
        ),
        "Ack",
    )


async def test_hooks_of_a_task_that_is_tried_again_and_fails_for_good() -> None:
    async def fail(ctx: TaskContext) -> None:
        raise ValueError("no luck")

    assert await run_noted(fail, settled=1) == around(
        *nested(
            "task_scope",
            *STARTED,
            "handler",
            *both("on_error no luck"),
            *ending("Released", "step.released"),
        ),
        "Nak",
        *nested(
            "task_scope",
            *STARTED,
            "handler",
            *both("on_error no luck"),
            *ending("Failed", "step.failed"),
            *both("pre_publish dead"),
            *both("on_complete Failed"),
        ),
        "Ack",
    )


async def test_hooks_of_a_task_that_streams_and_goes_on() -> None:
    async def go_on(ctx: TaskContext) -> None:
        await ctx.put_stream("chunk")
        if ctx.iteration == 0:
            ctx.continue_(1)

    assert await run_noted(go_on, settled=1) == around(
        *nested(
            "task_scope",
            *STARTED,
            "handler",
            *both("pre_publish stream"),
            *ending("Continued", "step.continue"),
            *both("pre_publish task"),
            *both("on_complete Continued"),
        ),
        "Ack",
        *nested(
            "task_scope",
            *STARTED,
            "handler",
            *both("pre_publish stream"),
            *ending("Completed", "step.completed"),
            *both("on_complete Completed"),
        ),
        "Ack",
    )


async def test_hooks_get_what_they_name_and_it_is_the_same_task() -> None:
    seen: list[Any] = []

    class Curious(Plugin[None]):
        name = "curious"

        @hookimpl
        async def on_complete(self, outcome: Outcome, ctx: TaskContext) -> None:
            seen.extend([ctx, outcome])

        @hookimpl
        async def pre_handle(self) -> None:
            seen.append("nothing")

    async def look(ctx: TaskContext) -> int:
        seen.append(ctx)
        return 7

    async with WorkerHarness({"shout": look}, plugins=[Curious()]) as harness:
        await harness.run("shout")
    nothing, of_handler, of_hook, outcome = seen
    assert nothing == "nothing"
    assert of_handler is of_hook
    assert outcome == Completed(b"7")


# ---------------------------------------------------------------- sync, async, context variables

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="unset")


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("place", ["task_scope", "pre_handle"])
@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_context_variable_that_a_hook_sets_is_seen_by_the_handler(
    kind: str, place: str, executor: str
) -> None:
    @asynccontextmanager
    async def scope() -> AsyncIterator[None]:
        token = word.set(place)
        yield
        word.reset(token)

    async def async_hook() -> None:
        word.set(place)

    def sync_hook() -> None:
        word.set(place)

    def sync_scope() -> AbstractAsyncContextManager[None]:
        return scope()

    scopes, hooks = (scope, async_hook) if kind == "async" else (sync_scope, sync_hook)
    plugin = plugin_with(**{place: scopes if place == "task_scope" else hooks})

    async def look(ctx: TaskContext) -> str:
        return word.get()

    def look_in_a_thread(ctx: SyncTaskContext) -> str:
        return word.get()

    result = await run(look if executor == "async" else look_in_a_thread, plugin)
    assert result.output == place


async def test_context_variable_of_one_task_is_not_seen_by_another() -> None:
    async def pre_handle(ctx: TaskContext) -> None:
        if word.get() != "unset":
            raise ValueError(f"somebody else's {word.get()}")
        word.set(ctx.run_id)

    async def look(ctx: TaskContext) -> bool:
        return word.get() == ctx.run_id

    async with WorkerHarness({"shout": look}, plugins=[plugin_with(pre_handle=pre_handle)]) as h:
        results = [await h.run("shout") for _ in range(3)]
    assert [result.output for result in results] == [True] * 3


async def test_every_hook_may_be_a_plain_function() -> None:
    called: list[str] = []

    def pre_handle() -> None:
        called.append("pre_handle")

    def pre_publish(message: Message) -> None:
        message.headers["X-Plain"] = "yes"

    def on_error() -> Outcome:
        called.append("on_error")
        return Completed(b"1")

    def on_complete() -> None:
        called.append("on_complete")

    def open_source() -> None:
        called.append("open_source")

    plugin = plugin_with(
        pre_handle=pre_handle,
        pre_publish=pre_publish,
        on_error=on_error,
        on_complete=on_complete,
        open_source=open_source,
    )
    assert (await run(fails, plugin)).output == 1
    assert called[:4] == ["open_source", "pre_handle", "on_error", "on_complete"]


# ---------------------------------------------------------------- scopes


@pytest.mark.parametrize(
    ("pre_handle", "handler", "fields", "expected"),
    [
        (None, shout, {}, left("", "Completed")),
        (None, fails, MANAGED, left("", "Failed")),
        (None, fails, {}, left("", "Released")),
        (EndTask(Completed(b"1")), never, {}, left("", "Completed")),
        (EndTask(Failed("no", "retriable")), never, MANAGED, left("", "Failed")),
        (DelayTask(SOON), never, {}, left("", "NoneType")),
        (SkipTask("done elsewhere"), never, {}, left("", "NoneType")),
        (ValueError("broken plugin"), never, {}, left("PluginError", "NoneType")),
    ],
    ids=["success", "failure", "retry", "end", "end failed", "delay", "skip", "broken"],
)
async def test_scopes_are_left_in_reverse_on_every_path(
    pre_handle: Exception | None, handler: Any, fields: Any, expected: Notes
) -> None:
    diary = Diary()
    hooks = {} if pre_handle is None else {"pre_handle": raising(pre_handle)}
    async with WorkerHarness(
        {"shout": handler}, plugins=[*diary.plugins(), plugin_with(**hooks)]
    ) as harness:
        await harness.run("shout", **fields)
        assert harness.worker.state == "running"
    assert diary.lines == expected


async def test_scopes_are_left_when_an_outcome_cannot_be_stored() -> None:
    diary, server = Diary(), MemoryServer()

    async def break_the_history(ctx: TaskContext) -> None:
        server.faults.fail_publishes(1, f"history.{ctx.run_id}", code=10060)

    async with WorkerHarness(
        {"shout": break_the_history}, plugins=diary.plugins(), server=server
    ) as harness:
        result = await harness.run("shout")
    assert result.verdict == Nak(REDELIVER_AFTER)
    assert diary.lines == left("PublishError", "Completed")


async def test_scopes_are_left_when_a_drain_ends_the_handler() -> None:
    diary, started = Diary(), asyncio.Event()

    async def hang(ctx: TaskContext) -> None:
        started.set()
        await asyncio.Event().wait()

    async with WorkerHarness({"shout": hang}, plugins=diary.plugins()) as harness:
        await harness.submit("shout")
        async with asyncio.timeout(BOUND_S):
            await started.wait()
            await harness.worker.stop(timedelta(0))
    assert diary.lines == left("", "Released")


async def test_scopes_are_left_when_a_handler_that_ignores_its_end_is_cut_off() -> None:
    diary, started, ignored = Diary(), asyncio.Event(), asyncio.Event()

    async def hang(ctx: TaskContext) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ignored.set()
            await asyncio.Event().wait()

    async with WorkerHarness({"shout": hang}, plugins=diary.plugins()) as harness:
        run = await harness.submit("shout")
        async with asyncio.timeout(BOUND_S):
            await started.wait()
            stopping = asyncio.create_task(harness.worker.stop(timedelta(0)))
            await ignored.wait()
            await harness.worker.cut()
            await stopping
        result = await harness.settled(run.run_id)
    assert result.verdict == Nak(timedelta(0))
    assert diary.lines == left("", "Released")


async def test_scopes_are_left_when_the_run_is_cancelled() -> None:
    diary, started = Diary(), asyncio.Event()

    async def hang(ctx: TaskContext) -> None:
        started.set()
        await asyncio.Event().wait()

    config = WorkerConfig(cancel_watch_after=timedelta(milliseconds=10))
    async with WorkerHarness({"shout": hang}, plugins=diary.plugins(), config=config) as harness:
        run = await harness.submit("shout")
        async with asyncio.timeout(BOUND_S):
            await started.wait()
            ending = asyncio.ensure_future(harness.settled(run.run_id))
            while not ending.done():  # nobody sees from outside when the watch has begun
                await run.cancel()
                await asyncio.wait({ending}, timeout=0.02)
        assert (await ending).verdict == Ack()
    assert diary.lines == left("StoppedError", "NoneType")


async def test_scopes_are_left_when_the_time_of_the_handler_is_over() -> None:
    diary = Diary()
    worker = Worker(MemoryTransport(), plugins=diary.plugins())

    async def hang(ctx: TaskContext) -> None:
        await asyncio.Event().wait()

    worker.handle("shout", hang, timeout=timedelta(milliseconds=20))
    async with WorkerHarness(worker) as harness:
        result = await harness.run("shout", workflow_name="hello")
    assert result.error == "timeout after 0.02 s"
    assert diary.lines == left("", "Failed")


async def test_scope_that_was_entered_is_left_when_the_next_one_cannot_be() -> None:
    diary = Diary()

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ValueError("cannot be entered")
        yield

    plugins = [*diary.plugins(), plugin_with(task_scope=broken)]
    async with WorkerHarness({"shout": never}, plugins=plugins) as harness:
        result = await harness.run("shout")
    assert result.verdict == Nak(REDELIVER_AFTER)
    assert types(result) == []
    assert diary.lines[:2] == ["first in", "second in"]
    assert [line for line in diary.lines if " out" in line] == [
        "second out PluginError",
        "first out PluginError",
    ]


async def test_message_that_cannot_be_decoded_opens_no_scope() -> None:
    diary = Diary()
    async with WorkerHarness({"shout": never}, plugins=diary.plugins()) as harness:
        harness.server.publish("task.shout.r1", b"not JSON")
        await harness.settled("r1")
    assert diary.lines == []


async def test_scope_cannot_swallow_an_error() -> None:
    @asynccontextmanager
    async def swallow() -> AsyncIterator[None]:
        with suppress(Exception):
            yield

    swallowing = plugin_with(task_scope=swallow, outcome_scope=swallow)
    broken = plugin_with("broken", pre_handle=raising(ValueError("broken")))
    result = await run(never, swallowing, broken)
    assert result.verdict == Nak(REDELIVER_AFTER)

    async with WorkerHarness({"shout": shout}, plugins=[swallowing]) as harness:
        harness.faults.fail_publishes(9, "history.>", code=10060)
        result = await harness.run("shout")
    assert result.verdict == Nak(REDELIVER_AFTER)


@pytest.mark.parametrize("hook", ["task_scope", "outcome_scope"])
@pytest.mark.parametrize(
    "error", [ValueError("cannot be left"), SkipTask("x"), EndTask(Paused("", SOON))]
)
async def test_error_of_a_scope_that_is_left_is_logged_and_changes_nothing(
    hook: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        yield
        raise error

    result = await run(shout, plugin_with(**{hook: broken}))
    assert (result.verdict, result.output) == (Ack(), "HELLO")
    assert types(result) == ["step.started", "step.completed"]
    (record, *_) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "'one'" in record.getMessage()
    assert hook in record.getMessage()
    assert record.exc_info


async def test_error_of_a_scope_that_is_left_does_not_hide_the_first_one() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise ValueError("cannot be left")

    diary = Diary()
    broken_plugin = plugin_with(task_scope=broken, pre_handle=raising(KeyError("first")))
    result = await run(never, *diary.plugins(), broken_plugin)
    assert result.verdict == Nak(REDELIVER_AFTER)
    assert diary.lines[2:6] == left("PluginError", "NoneType")[2:6]


async def test_worker_scope_is_open_around_everything_and_its_error_stops_the_start() -> None:
    seen: Notes = []

    @asynccontextmanager
    async def scope(worker: WorkerFacade) -> AsyncIterator[None]:
        seen.append(worker.state)
        yield
        seen.append(worker.state)

    await run(shout, plugin_with(worker_scope=scope))
    assert seen == ["starting", "draining"]

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ValueError("no licence")
        yield

    worker = Worker(MemoryTransport(), plugins=[plugin_with(worker_scope=broken)])
    worker.handle("shout", shout)
    with pytest.raises(PluginError, match=r"plugin 'one'.* worker_scope: no licence"):
        await worker.start()


# ---------------------------------------------------------------- pre_handle


async def test_plugin_ends_a_task_as_its_handler_would_have() -> None:
    result = await run(never, plugin_with(pre_handle=raising(EndTask(Completed(b"7")))))
    assert (result.verdict, result.output) == (Ack(), 7)
    assert types(result) == ["step.started", "step.completed"]


async def test_task_that_a_plugin_ends_with_a_failure_is_tried_again() -> None:
    error = EndTask(Failed("no", "retriable"))
    result = await run(never, plugin_with(pre_handle=raising(error)))
    assert isinstance(result.verdict, Nak)
    assert types(result) == ["step.started", "step.released"]


async def test_plugin_delays_a_task_and_nothing_is_published() -> None:
    result = await run(never, plugin_with(pre_handle=raising(DelayTask(SOON))))
    assert (result.verdict, types(result)) == (Nak(SOON), [])


async def test_plugin_skips_a_task_and_nothing_is_published() -> None:
    result = await run(never, plugin_with(pre_handle=raising(SkipTask("elsewhere"))))
    assert (result.verdict, types(result)) == (Ack(), [])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("broken"),
        ReleaseTask(Completed(b"1")),
        NonRetryableError("never"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_other_error_before_the_handler_gives_the_task_back(error: Exception) -> None:
    result = await run(never, plugin_with(pre_handle=raising(error)))
    assert (result.verdict, types(result)) == (Nak(REDELIVER_AFTER), [])


async def test_second_plugin_is_not_asked_after_the_first_has_ended_the_task() -> None:
    asked: Notes = []

    async def pre_handle() -> None:
        asked.append("second")

    second = plugin_with("two", pre_handle=pre_handle)
    await run(never, plugin_with(pre_handle=raising(SkipTask("x"))), second)
    assert asked == []


async def test_what_a_plugin_has_recorded_before_the_handler_stands() -> None:
    async def pre_handle(ctx: TaskContext) -> None:
        ctx.record(Completed(b'"recorded"'))

    async def handler(ctx: TaskContext) -> str:
        return "returned"

    result = await run(handler, plugin_with(pre_handle=pre_handle))
    assert result.output == "recorded"
