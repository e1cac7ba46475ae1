"""What the harness tells of a task, for authors of handlers and of plugins.

Method: handlers and plugins as a user writes them, run by a real worker. Fake: the server and its
clock, which the harness brings along.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pytest
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import (
    Completed,
    DelayTask,
    EndTask,
    Failed,
    NonRetryableError,
    Outcome,
    Plugin,
    Released,
    Retry,
    RetryAfterError,
    SkipTask,
    SyncTaskContext,
    TaskContext,
    UsageError,
    Worker,
    WorkerConfig,
    hookimpl,
)
from dagnats_worker.testing import Ack, MemoryServer, Nak, Term, WorkerHarness

BOUND_S = 10


@dataclass
class Size:
    width: int
    height: int = 1


async def resize(ctx: TaskContext, size: Size) -> dict[str, int]:
    await ctx.put_stream(b"half")
    await ctx.put_stream({"done": True})
    return {"area": size.width * size.height}


def shout(ctx: SyncTaskContext, text: str) -> str:
    return f"{text.upper()}, {ctx.metadata.get('to', 'all')}"


async def flaky(ctx: TaskContext) -> int:
    if ctx.attempt < 3:
        raise ValueError(f"attempt {ctx.attempt}")
    return ctx.attempt


async def hopeless(ctx: TaskContext) -> None:
    raise NonRetryableError("no such file")


async def hang(ctx: TaskContext) -> None:
    await asyncio.Event().wait()


worker = Worker("nats://127.0.0.1:1", plugins=(), groups=["gpu"])
worker.handle("resize", resize)
worker.handle("flaky", flaky, retry=Retry(stop=stop_after_attempt(2), wait=wait_fixed(3)))


# ---------------------------------------------------------------------- what a result tells


async def test_a_test_of_a_handler_takes_three_lines() -> None:
    async with WorkerHarness({"resize": resize}) as harness:
        result = await harness.run("resize", {"width": 2, "height": 3})
    assert result.output == {"area": 6}


async def test_a_result_tells_all_of_a_success() -> None:
    async with WorkerHarness({"resize": resize}) as harness:
        result = await harness.run("resize", {"width": 2}, run_id="r1", step_id="s1")
    assert (result.run_id, result.step_id, result.deliveries) == ("r1", "s1", 1)
    assert result.verdict == Ack()
    assert result.outcome == Completed(b'{"area":2}')
    assert [event.type for event in result.events] == ["step.started", "step.completed"]
    assert result.chunks == (b"half", b'{"done":true}')
    assert result.error is None
    assert result.exception is None


async def test_a_result_tells_all_of_a_failure() -> None:
    async with WorkerHarness({"hopeless": hopeless}) as harness:
        result = await harness.run("hopeless", run_id="r1")
        letters = harness.dead_letters()
    assert result.verdict == Ack()
    assert result.outcome == Failed("no such file", "non_retriable")
    assert (result.error, result.output) == ("no such file", None)
    assert isinstance(result.exception, NonRetryableError)
    assert [event.type for event in result.events] == ["step.started", "step.failed"]
    assert [letter.json()["run_id"] for letter in letters] == ["r1"]


async def test_the_error_of_a_task_that_is_tried_again_is_told() -> None:
    async with WorkerHarness({"flaky": flaky}) as harness:
        result = await harness.run("flaky")
    assert isinstance(result.verdict, Nak)
    assert result.outcome == Released("retry", result.verdict.delay, "attempt 1")
    assert (result.error, type(result.exception)) == ("attempt 1", ValueError)
    assert harness.dead_letters() == []


async def test_the_delay_that_a_handler_asks_for_is_told() -> None:
    async def limited(ctx: TaskContext) -> None:
        raise RetryAfterError("too many", timedelta(seconds=30))

    async with WorkerHarness({"limited": limited}) as harness:
        result = await harness.run("limited")
        managed = await harness.run("limited", workflow_name="resize-all")
    assert result.verdict == Nak(timedelta(seconds=30))
    assert managed.verdict == Ack()
    assert managed.outcome == Failed("too many", "retry_after", timedelta(seconds=30))


async def test_a_handler_in_a_thread_is_run_too() -> None:
    async with WorkerHarness({"shout": shout}) as harness:
        result = await harness.run("shout", "hello", metadata={"to": "Ada"})
    assert result.output == "HELLO, Ada"


async def test_an_input_of_the_wrong_type_is_told() -> None:
    async with WorkerHarness({"resize": resize}) as harness:
        result = await harness.run("resize", {"width": "wide"})
    assert result.error is not None
    assert "width" in result.error


async def test_a_message_that_cannot_be_read_is_told_too() -> None:
    async with WorkerHarness({"resize": resize}) as harness:
        harness.server.publish("task.resize.r1", b"not JSON")
        result = await harness.settled("r1")
    assert isinstance(result.verdict, Term)
    assert (result.outcome, result.step_id, result.events) == (None, "", ())
    assert harness.dead_letters()[0].data == b"not JSON"


# ---------------------------------------------------------------------- again, and to the end


async def test_a_task_is_run_to_its_end_without_waiting() -> None:
    async with WorkerHarness({"flaky": flaky}) as harness:
        result = await harness.run_to_end("flaky")
        assert (result.output, result.deliveries, result.verdict) == (3, 3, Ack())
        assert len(result.events) == 2
        assert len(harness.events(result.run_id)) == 6


async def test_a_task_that_is_given_back_comes_when_the_clock_says_so() -> None:
    async with WorkerHarness({"flaky": flaky}) as harness:
        first = await harness.run("flaky")
        assert isinstance(first.verdict, Nak)
        harness.clock.advance(first.verdict.delay)
        second = await harness.settled(first.run_id)
    assert (second.deliveries, second.error) == (2, "attempt 2")


async def test_a_task_that_is_given_back_for_ever_is_a_failure_of_the_test() -> None:
    class Never(Plugin[None]):
        name = "never"

        @hookimpl
        def pre_handle(self) -> None:
            raise DelayTask(timedelta(seconds=1))

    async with WorkerHarness({"resize": resize}, plugins=[Never()]) as harness:
        with pytest.raises(UsageError, match="given back 100 times"):
            await harness.run_to_end("resize", {"width": 1})


async def test_the_turns_of_a_loop_are_told_one_by_one() -> None:
    async def turn(ctx: TaskContext) -> None:
        if ctx.iteration == 0:
            ctx.continue_("more")
        else:
            ctx.complete("enough")

    async with WorkerHarness({"turn": turn}) as harness:
        first = await harness.run("turn")
        second = await harness.settled(first.run_id)
    assert [first.output, second.output] == ["more", "enough"]


async def test_tasks_run_side_by_side_and_are_told_apart() -> None:
    meeting = asyncio.Barrier(3)

    async def meet(ctx: TaskContext, number: int) -> int:
        async with asyncio.timeout(BOUND_S):
            await meeting.wait()
        return number

    async with WorkerHarness({"meet": meet}) as harness:
        runs = [await harness.submit("meet", number) for number in range(3)]
        results = [await harness.settled(run.run_id) for run in runs]
        assert await runs[2].result(timedelta(seconds=BOUND_S)) == 2
    assert [result.output for result in results] == [0, 1, 2]


# ---------------------------------------------------------------------- whose worker


@pytest.mark.parametrize("_again", [1, 2])
async def test_every_test_can_use_the_same_worker(_again: int) -> None:
    async with WorkerHarness(worker) as harness:
        result = await harness.run("resize", {"width": 4})
        assert harness.worker.state == "running"
    assert result.output == {"area": 4}
    assert worker.state == "starting"


async def test_a_worker_brings_its_options_and_groups() -> None:
    async with WorkerHarness(worker) as harness:
        result = await harness.run("flaky")
        assert result.verdict == Nak(timedelta(seconds=3))
        harness.clock.advance(timedelta(seconds=3))
        last = await harness.settled(result.run_id)
    assert (last.verdict, last.error) == (Ack(), "attempt 2")
    assert (
        harness.dead_letters()[0].headers["Dagnats-Dlq-Task-Subject"].startswith("task.flaky.gpu.")
    )


def test_a_worker_has_its_own_plugins() -> None:
    with pytest.raises(UsageError, match="give them to Worker"):
        WorkerHarness(worker, plugins=[Plugin()])
    with pytest.raises(UsageError, match="give them to Worker"):
        WorkerHarness(worker, config=WorkerConfig())


async def test_a_server_can_be_prepared() -> None:
    async def look(ctx: TaskContext) -> None: ...

    async with WorkerHarness({"look": look}, server=MemoryServer()) as harness:
        assert (await harness.run("look")).verdict == Ack()
        with pytest.raises(UsageError, match="MemoryServer"):
            harness.clock  # noqa: B018 - the property raises


# ---------------------------------------------------------------------- plugins


class Recorder(Plugin[None]):
    """Writes down which hook was called."""

    name = "recorder"

    def __init__(self, answer: Literal["", "end", "skip", "delay"] = "") -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[str] = []

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: Any) -> AsyncIterator[None]:
        await worker.kv("signals").put("there", b"1")
        self.calls.append("start")
        yield
        self.calls.append("stop")

    @hookimpl
    async def pre_handle(self) -> None:
        self.calls.append("pre_handle")
        match self.answer:
            case "end":
                raise EndTask(Completed(b'"ended"'))
            case "skip":
                raise SkipTask("done elsewhere")
            case "delay":
                raise DelayTask(timedelta(hours=1))
            case "":
                pass

    @hookimpl
    async def on_error(self, outcome: Outcome) -> Outcome:
        self.calls.append("on_error")
        return Completed(b'"saved"')


async def test_a_plugin_is_run_with_the_worker() -> None:
    plugin = Recorder()
    async with WorkerHarness({"resize": resize}, plugins=[plugin]) as harness:
        entry = await harness.transport.key_value("signals").get("there")
        await harness.run("resize", {"width": 1})
    assert entry is not None
    assert plugin.calls == ["start", "pre_handle", "stop"]


async def test_the_plugins_of_a_worker_are_run_with_its_copy() -> None:
    plugin = Recorder()
    own = Worker(plugins=[plugin])
    own.handle("resize", resize)
    async with WorkerHarness(own) as harness:
        await harness.run("resize", {"width": 1})
    assert plugin.calls == ["start", "pre_handle", "stop"]


async def test_what_a_plugin_makes_of_a_failure_is_told_beside_the_failure() -> None:
    async with WorkerHarness({"hopeless": hopeless}, plugins=[Recorder()]) as harness:
        result = await harness.run("hopeless")
    assert (result.output, result.error) == ("saved", "no such file")


@pytest.mark.parametrize(
    ("answer", "verdict", "outcome"),
    [
        ("end", Ack(), Completed(b'"ended"')),
        ("skip", Ack(), None),
        ("delay", Nak(timedelta(hours=1)), None),
    ],
)
async def test_a_plugin_can_end_a_task_before_its_handler(
    answer: Literal["end", "skip", "delay"], verdict: Any, outcome: Outcome | None
) -> None:
    plugins = [Recorder(answer)]
    async with WorkerHarness({"resize": resize}, plugins=plugins) as harness:
        result = await harness.run("resize", {"width": 1})
    assert (result.verdict, result.outcome) == (verdict, outcome)


# ---------------------------------------------------------------------- mistakes


async def test_a_task_type_that_nobody_serves_is_refused_at_once() -> None:
    async with WorkerHarness({"resize": resize}) as harness:
        with pytest.raises(UsageError, match=r"does not take 'task\.resise\..*it serves resize"):
            await harness.run("resise", {"width": 1})


async def test_a_handler_that_hangs_is_named_when_time_is_over() -> None:
    config = WorkerConfig(drain_timeout=timedelta(milliseconds=50))
    async with WorkerHarness({"hang": hang}, config=config) as harness:
        run = await harness.submit("hang")
        with pytest.raises(TimeoutError, match=f"run {run.run_id}: no verdict.*clock"):
            await harness.settled(run.run_id, timeout=timedelta(milliseconds=50))
        await harness.worker.stop(timedelta(milliseconds=50))
        result = await harness.settled(run.run_id)
    assert result.outcome == Released("drain")


async def test_a_handler_is_ended_by_the_clock() -> None:
    slow = Worker(plugins=())
    started = asyncio.Event()

    async def hang_visibly(ctx: TaskContext) -> None:
        started.set()
        await asyncio.Event().wait()

    slow.handle("hang", hang_visibly, timeout=timedelta(minutes=2))
    async with WorkerHarness(slow) as harness:
        run = await harness.submit("hang", workflow_name="w")
        async with asyncio.timeout(BOUND_S):
            await started.wait()
        harness.clock.advance(timedelta(minutes=3))
        result = await harness.settled(run.run_id)
    assert result.error == "timeout after 120 s"


async def test_a_worker_that_has_stopped_is_not_waited_for() -> None:
    async with WorkerHarness({"resize": resize}) as harness:
        harness.transport.end("gone")
        with pytest.raises(UsageError, match="the worker has stopped: gone"):
            await harness.run("resize", {"width": 1})
