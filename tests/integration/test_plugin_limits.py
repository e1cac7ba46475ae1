"""Hooks that take too long, that block the loop, that are cancelled; and what is said of them.

Method: a real worker on the in-memory server with short limits; hooks wait on what never comes, or
block for real. Real: the clock of hooks and the watchdog's thread. Fake: the NATS server.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hook_support import plugin_with
from plugin_workers import BOUND_S, MANAGED, QUICK, scope_of, serving, state_of, worker_with
from support import eventually

from dagnats_worker import Client, PluginError, SyncTaskContext, TaskContext, hookimpl
from dagnats_worker.hookspecs import Message, Plugin, WorkerFacade
from dagnats_worker.testing import Ack, MemoryTransport, Nak, TaskResult

GIVEN_BACK = Nak(QUICK.redeliver_after)
BLOCKED_S = 0.5
LATE = "it took longer than hook_timeout and was cancelled"

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


async def hang() -> None:
    await asyncio.Event().wait()


def types(result: TaskResult) -> list[str]:
    return [event.type for event in result.events]


def completed_hangs() -> Callable[..., Any]:
    async def pre_publish(message: Message) -> None:
        if message.event_type == "step.completed":
            await hang()

    return pre_publish


# ------------------------------------------------------------------------- too long

HANGS: dict[str, tuple[dict[str, Any], bool]] = {
    "entering task_scope": ({"task_scope": scope_of(before=hang)}, True),
    "leaving task_scope": ({"task_scope": scope_of(after=hang)}, False),
    "pre_handle": ({"pre_handle": hang}, True),
    "pre_publish": ({"pre_publish": completed_hangs()}, True),
    "entering outcome_scope": ({"outcome_scope": scope_of(before=hang)}, False),
    "leaving outcome_scope": ({"outcome_scope": scope_of(after=hang)}, False),
    "on_complete": ({"on_complete": hang}, False),
}
"""The hook, and whether a required plugin's error in it gives the task back."""


@pytest.mark.parametrize("where", HANGS)
async def test_hook_that_hangs_is_cancelled_and_the_task_goes_on_without_it(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    hooks, _ = HANGS[where]
    async with serving(optional=[plugin_with("slow", **hooks)]) as harness:
        result = await harness.run("shout")
        assert (result.verdict, result.output) == (Ack(), "HELLO")
        assert types(result) == ["step.started", "step.completed"]
    assert f"plugin 'slow', {where}: {LATE}" in caplog.text


@pytest.mark.parametrize("where", HANGS)
async def test_hook_of_a_required_plugin_that_hangs_gives_the_task_back_where_it_can(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    hooks, vital = HANGS[where]
    async with serving(required=[plugin_with("slow", **hooks)]) as harness:
        assert (await harness.run("shout")).verdict == (GIVEN_BACK if vital else Ack())
    assert f"plugin 'slow', {where}: {LATE}" in caplog.text


async def test_on_error_that_hangs_leaves_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(ctx: TaskContext) -> None:
        raise ValueError("no luck")

    async with serving(fails, required=[plugin_with("slow", on_error=hang)]) as harness:
        result = await harness.run("shout", **MANAGED)
    assert types(result) == ["step.started", "step.failed"]
    assert f"plugin 'slow', on_error: {LATE}" in caplog.text


async def test_context_variables_survive_a_hook_that_was_cancelled() -> None:
    async def sets_and_hangs() -> None:
        seen.set("hanging")
        await hang()

    async def sets() -> None:
        seen.set(f"{seen.get()}, then fine")

    async def reads(ctx: TaskContext) -> str:
        return seen.get()

    slow = plugin_with("slow", pre_handle=sets_and_hangs)
    fine = plugin_with("fine", pre_handle=sets)
    async with serving(reads, optional=[slow], required=[fine]) as harness:
        assert (await harness.run("shout")).output == "hanging, then fine"


async def test_handler_runs_uncancelled_after_a_hook_was_cancelled() -> None:
    async def looks(ctx: TaskContext) -> int:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    async with serving(looks, optional=[plugin_with("slow", pre_handle=hang)]) as harness:
        assert (await harness.run("shout")).output == 0


async def test_hook_that_ignores_the_cancellation_is_cancelled_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await hang()
            except asyncio.CancelledError:
                continue

    async with serving(optional=[plugin_with("slow", pre_handle=stubborn)]) as harness:
        assert (await harness.run("shout")).output == "HELLO"
        assert state_of(harness.worker, "slow") == "active"
    assert "plugin 'slow', pre_handle ignores that it is cancelled" in caplog.text


async def test_slow_hooks_one_after_the_other_are_not_one_slow_hook() -> None:
    async def takes_a_while() -> None:
        await asyncio.sleep(QUICK.hook_timeout.total_seconds() * 0.6)

    plugins = [plugin_with(f"slow-{number}", pre_handle=takes_a_while) for number in range(4)]
    async with serving(required=plugins) as harness:
        assert (await harness.run("shout")).output == "HELLO"


async def test_start_is_stopped_by_a_required_plugin_that_hangs() -> None:
    worker = worker_with(required=[plugin_with("slow", worker_scope=scope_of(before=hang))])
    with pytest.raises(PluginError, match=f"plugin 'slow', entering worker_scope: {LATE}"):
        await worker.start()
    worker = worker_with(required=[plugin_with("slow", open_source=hang)])
    with pytest.raises(PluginError, match=f"plugin 'slow', open_source: {LATE}"):
        await worker.start()


async def test_stop_is_not_held_up_by_a_scope_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    outer = plugin_with("outer", worker_scope=scope_of(notes=notes, name="outer"))
    slow = plugin_with("slow", worker_scope=scope_of(after=hang))
    async with asyncio.timeout(BOUND_S), serving(required=[outer, slow]) as harness:
        await harness.run("shout")
    assert notes == ["outer in", "outer out"]
    assert f"plugin 'slow', leaving worker_scope: {LATE}" in caplog.text


async def test_client_is_not_held_up_by_a_hook_that_hangs() -> None:
    plugins = [plugin_with("slow", pre_publish=hang)]
    async with Client(MemoryTransport(), plugins=plugins, config=QUICK) as client:
        with pytest.raises(PluginError, match=f"plugin 'slow', pre_publish: {LATE}"):
            await client.submit("shout")


# ------------------------------------------------------------------------- hooks within hooks


async def streams_itself(ctx: TaskContext) -> None:
    await ctx.put_stream("x")


async def streams_in_another_task(ctx: TaskContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.put_stream("x"))


def streams_from_a_thread(ctx: SyncTaskContext) -> None:
    ctx.put_stream("x")


@pytest.mark.parametrize(
    "handler", [streams_itself, streams_in_another_task, streams_from_a_thread]
)
async def test_hook_that_hangs_while_a_handler_streams_is_what_is_cancelled(
    handler: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def pre_publish(message: Message) -> None:
        if not message.event_type:
            await hang()

    async with serving(handler, optional=[plugin_with("slow", pre_publish=pre_publish)]) as one:
        result = await one.run("shout")
        assert types(result) == ["step.started", "step.completed"]
        assert result.chunks == (b'"x"',)
    assert f"plugin 'slow', pre_publish: {LATE}" in caplog.text


async def test_outer_hook_is_still_bounded_after_an_inner_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def pre_handle(ctx: TaskContext) -> None:
        await ctx.put_stream("from a hook")
        await hang()

    async def pre_publish() -> None: ...

    slow = plugin_with("slow", pre_handle=pre_handle, pre_publish=pre_publish)
    async with serving(optional=[slow]) as harness:
        assert (await harness.run("shout")).output == "HELLO"
    assert f"plugin 'slow', pre_handle: {LATE}" in caplog.text


# ------------------------------------------------------------------------- cancelled by others


async def test_cancellation_of_the_task_is_not_taken_for_a_failure_of_the_hook(
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered = asyncio.Event()

    async def pre_handle() -> None:
        entered.set()
        await hang()

    patient = plugin_with("patient", pre_handle=pre_handle)
    config = QUICK.__class__(hook_timeout=timedelta(minutes=1))
    async with serving(optional=[patient], config=config) as harness:
        await harness.submit("shout")
        async with asyncio.timeout(BOUND_S):
            await entered.wait()
            await harness.worker.stop()
        (member,) = (one for one in harness.worker._hooks.members if one.name == "patient")
        assert (member.reason, member.state) == ("", "active")
        assert not harness.events("shout")
    assert "plugin 'patient'" not in caplog.text


async def test_timeout_of_the_handler_around_a_stream_is_its_own() -> None:
    async def impatient(ctx: TaskContext) -> str:
        try:
            async with asyncio.timeout(0.05):
                await ctx.put_stream("x")
        except TimeoutError:
            return "gave up"
        return "sent"

    async def pre_publish(message: Message) -> None:
        if not message.event_type:
            await hang()

    async with serving(impatient, required=[plugin_with("slow", pre_publish=pre_publish)]) as one:
        assert (await one.run("shout")).output == "gave up"


# ------------------------------------------------------------------------- blocking the loop


def blocks() -> None:
    time.sleep(BLOCKED_S)


OF_THE_TASK = "for a task of type 'shout' (run run-1, step step-1)"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "dagnats_worker.watchdog"]


@pytest.mark.parametrize(
    ("hooks", "label"),
    [
        ({"pre_handle": blocks}, f"pre_handle, {OF_THE_TASK}"),
        ({"on_complete": blocks}, f"on_complete, {OF_THE_TASK}"),
        ({"open_source": blocks}, "open_source"),
    ],
)
async def test_hook_that_blocks_the_loop_is_named_with_the_stack(
    hooks: dict[str, Any], label: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(required=[plugin_with("heavy", **hooks)]) as harness:
        done = await harness.run("shout", run_id="run-1", step_id="step-1")
        assert done.output == "HELLO"
    (warning,) = warnings_of(caplog)
    first, *stack = warning.splitlines()
    assert "the event loop has been blocked for 0." in first
    assert f"by plugin 'heavy' in {label}: a hook must not block" in first
    assert any("in blocks" in line for line in stack)
    assert any("time.sleep(BLOCKED_S)" in line for line in stack)


async def test_async_hook_and_scope_that_block_the_loop_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def blocks_too() -> None:
        await asyncio.sleep(0)
        blocks()

    heavy = plugin_with("heavy", task_scope=scope_of(before=blocks_too, after=blocks_too))
    async with serving(required=[heavy]) as harness:
        await harness.run("shout")
    first, second = warnings_of(caplog)
    assert "by plugin 'heavy' in entering task_scope" in first
    assert "by plugin 'heavy' in leaving task_scope" in second


async def test_handler_that_blocks_the_loop_is_named_with_its_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def busy(ctx: TaskContext) -> str:
        blocks()
        await asyncio.sleep(0.1)
        blocks()
        return "done"

    async with serving(busy) as harness:
        await harness.run("shout", run_id="run-1", step_id="step-1")
    first, second = warnings_of(caplog)
    for warning in (first, second):
        assert "by the handler of task type 'shout' (run run-1, step step-1): make it" in warning
        assert "in busy" in warning


async def test_callback_that_blocks_the_loop_is_shown_by_its_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def calls_back(ctx: TaskContext) -> None:
        asyncio.get_running_loop().call_soon(blocks)
        await asyncio.sleep(0.1)

    async with serving(calls_back) as harness:
        await harness.run("shout", run_id="run-1", step_id="step-1")
    (warning,) = warnings_of(caplog)
    assert "by something that does not await, while handlers run for 'shout' (run run-1" in warning
    assert "step step-1): the stack says where" in warning
    assert "in blocks" in warning


async def test_hook_that_a_handler_calls_itself_is_known_by_its_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def pre_handle() -> None:
        if asyncio.current_task() in begun:
            blocks()

    async def begins(ctx: TaskContext) -> None:
        task = asyncio.create_task(heavy.pre_handle())  # type: ignore[attr-defined]  # made for it
        begun.add(task)
        await task

    begun: set[asyncio.Task[None]] = set()
    heavy = plugin_with("heavy", pre_handle=pre_handle)
    async with serving(begins, required=[heavy]) as harness:
        await harness.run("shout")
    (warning,) = warnings_of(caplog)
    assert "by plugin 'heavy' in pre_handle" in warning


async def test_background_work_that_blocks_the_loop_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def heavy_work() -> None:
        await asyncio.sleep(0.05)
        blocks()

    class Heavy(Plugin[None]):
        name = "heavy"

        @hookimpl
        async def open_source(self, worker: WorkerFacade) -> None:
            worker.spawn(heavy_work, "counting sheep")

    async with serving(required=[Heavy()]) as harness:
        await eventually(lambda: warnings_of(caplog), BOUND_S)
        await harness.run("shout")
    (warning,) = warnings_of(caplog)
    assert "by plugin 'heavy' in 'counting sheep'" in warning


async def test_loop_that_is_busy_but_turns_is_not_complained_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def turns(ctx: TaskContext) -> None:
        end = time.monotonic() + BLOCKED_S
        while time.monotonic() < end:  # noqa: ASYNC110 - it is to be busy, and to turn
            await asyncio.sleep(0)

    async with serving(turns) as harness:
        await harness.run("shout")
        assert harness.worker.stats().loop_lag_s < QUICK.loop_lag_warning.total_seconds()
    assert warnings_of(caplog) == []


def test_loop_that_was_left_without_a_stop_is_not_watched_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def leave() -> threading.Thread:
        worker = worker_with()
        await worker.start()
        assert worker._running is not None
        assert worker._running._watchdog is not None
        return worker._running._watchdog._thread

    thread = asyncio.run(leave())
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert warnings_of(caplog) == []


async def test_worst_lag_is_told_once_it_was_there() -> None:
    async def busy(ctx: TaskContext) -> None:
        blocks()
        await asyncio.sleep(0.3)

    async with serving(busy) as harness:
        harness.worker.stats()
        await harness.run("shout")
        for _ in range(2):  # asking changes nothing
            assert BLOCKED_S * 0.5 < harness.worker.stats().loop_lag_s < BLOCKED_S * 4


# ------------------------------------------------------------------------- tracing


async def test_each_call_is_traced_with_plugin_and_duration(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGNATS_WORKER_TRACE_PLUGINS", "1")

    async def slow() -> None:
        await asyncio.sleep(0.02)

    def plain() -> None: ...

    async def refuses() -> None:
        raise RuntimeError("no")

    traced = plugin_with(
        "seen", task_scope=scope_of(before=slow), pre_handle=slow, on_complete=plain
    )
    refusing = plugin_with("odd", pre_handle=refuses)
    async with serving(optional=[refusing], required=[traced]) as harness:
        await harness.run("shout")
    traces = [one.getMessage() for one in caplog.records if one.name.endswith("plugins.trace")]
    lines = [line for line in traces if not line.startswith("harness,")]
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "seen, entering task_scope took",
        "odd, pre_handle raised RuntimeError after",
        "seen, pre_handle took",
        "seen, on_complete took",
        "seen, leaving task_scope took",
    ]
    took = {line.split(" took ")[0]: float(line.split()[-2]) for line in lines if "took" in line}
    assert took["seen, pre_handle"] >= 20
    assert took["seen, entering task_scope"] >= 20


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
async def test_nothing_is_traced_where_it_is_switched_off(
    value: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGNATS_WORKER_TRACE_PLUGINS", value)

    async def pre_handle() -> None: ...

    with caplog.at_level(logging.DEBUG):
        async with serving(required=[plugin_with("seen", pre_handle=pre_handle)]) as harness:
            await harness.run("shout")
    assert not [one for one in caplog.records if one.name.endswith("plugins.trace")]
