"""What plugins give to handlers: capabilities, options of tasks, scopes in child processes.

Method: plugins in a real worker. Real: threads and child processes. Fake: the NATS server, which is
the in-memory one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

import process_plugins
import pytest
from hook_support import plugin_with
from plugin_workers import MANAGED, QUICK, serving, worker_with

from dagnats_worker import (
    Capability,
    CapabilityMissingError,
    Completed,
    Failed,
    Plugin,
    PluginError,
    Released,
    ReleaseTask,
    StartError,
    SyncTaskContext,
    TaskContext,
    UsageError,
    hookimpl,
)
from dagnats_worker.hookspecs import CHECKPOINTS, WorkerFacade
from dagnats_worker.testing import Ack, Nak, WorkerHarness

GREETING: Capability[Greeter] = Capability("greeting", install="acme-greeting")


class Greeter:
    """A capability: says which task it is for, and how often one was made."""

    def __init__(self, ctx: Any, count: int) -> None:
        self.ctx = ctx
        self.count = count

    async def greet(self, name: str) -> str:
        await asyncio.sleep(0)
        return f"{name}, {self.ctx.run_id}, {self.count}"

    def end(self) -> None:
        self.ctx.record(Completed(b'"recorded"'))

    def release(self) -> None:
        raise ReleaseTask(Released("delay", timedelta(minutes=2)))


class Greeting(Plugin[None]):
    name: ClassVar[str] = "greeting"

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def make(self, ctx: Any) -> Greeter:
        self.made += 1
        return Greeter(ctx, self.made)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(GREETING, self.make)
        yield


# ------------------------------------------------------------------------- capabilities


async def test_capability_is_made_once_per_task_on_first_use() -> None:
    async def handler(ctx: TaskContext) -> list[str]:
        first, again = ctx.use(GREETING), ctx.use(GREETING)
        assert first is again
        return [await first.greet("ada"), await again.greet("bob")]

    async def without(ctx: TaskContext) -> None: ...

    plugin = Greeting()
    handlers = {"shout": handler, "silent": without}
    async with WorkerHarness(handlers, plugins=[plugin]) as harness:
        for count in (1, 2):
            run_id = f"run-{count}"
            result = await harness.run("shout", run_id=run_id)
            assert result.output == [f"ada, {run_id}, {count}", f"bob, {run_id}, {count}"]
        await harness.run("silent")
    assert plugin.made == 2


async def test_hook_and_handler_of_a_task_share_the_capability() -> None:
    async def pre_handle(ctx: TaskContext) -> None:
        assert await ctx.use(GREETING).greet("hook") == f"hook, {ctx.run_id}, 1"

    async def handler(ctx: TaskContext) -> int:
        return ctx.use(GREETING).count

    greeting = Greeting()
    async with serving(
        handler, required=[greeting, plugin_with("uses", pre_handle=pre_handle)]
    ) as harness:
        assert (await harness.run("shout")).output == 1


async def test_blocking_handler_uses_a_capability_from_its_thread() -> None:
    def handler(ctx: SyncTaskContext) -> str:
        return ctx.run(ctx.use(GREETING).greet("ada"))

    async with serving(handler, required=[Greeting()]) as harness:
        assert (await harness.run("shout", run_id="r")).output == "ada, r, 1"


async def test_process_handler_has_no_context_to_use_one_from() -> None:
    def handler(ctx: SyncTaskContext, text: str) -> str:
        return text

    with pytest.raises(TypeError, match="process"):
        worker_with(handler, required=[Greeting()], executor="process")


async def test_capability_ends_the_task_that_uses_it() -> None:
    async def records(ctx: TaskContext) -> None:
        ctx.use(GREETING).end()

    async def releases(ctx: TaskContext) -> None:
        ctx.use(GREETING).release()

    handlers = {"records": records, "releases": releases}
    async with WorkerHarness(handlers, plugins=[Greeting()]) as harness:
        assert (await harness.run("records")).output == "recorded"
        released = await harness.run("releases")
        assert released.verdict == Nak(timedelta(minutes=2))


async def test_factory_that_fails_fails_the_handler_that_uses_it() -> None:
    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(GREETING, lambda _ctx: 1 / 0)  # type: ignore[arg-type,return-value]  # fails
        yield

    async def handler(ctx: TaskContext) -> None:
        ctx.use(GREETING)

    async with serving(handler, required=[plugin_with(worker_scope=worker_scope)]) as harness:
        result = await harness.run("shout", **MANAGED)
    assert result.failure is not None
    assert (result.failure.error, result.failure.failure_type) == ("division by zero", "retriable")


async def test_capability_that_nobody_provides_says_what_to_install() -> None:
    async def handler(ctx: TaskContext) -> None:
        ctx.use(GREETING)

    async def checkpoints(ctx: TaskContext) -> None:
        await ctx.checkpoint("x")

    handlers = {"shout": handler, "saves": checkpoints}
    async with WorkerHarness(handlers) as harness:
        for task_type, says in {
            "shout": "no plugin provides 'greeting': pip install 'acme-greeting'",
            "saves": "no plugin provides 'checkpoints': pip install 'dagnats-worker[checkpoint]'",
        }.items():
            result = await harness.run(task_type, **MANAGED)
            assert result.outcome == Failed(says, "non_retriable")


async def test_worker_does_not_start_without_what_a_task_type_needs() -> None:
    worker = worker_with(needs=[CHECKPOINTS])
    says = r"task type 'shout' needs 'checkpoints', and no plugin .*\[checkpoint\]"
    with pytest.raises(CapabilityMissingError, match=says):
        await worker.start()
    async with serving(required=[Greeting()], needs=[GREETING]) as harness:
        assert (await harness.run("shout")).verdict == Ack()


async def test_two_plugins_that_provide_the_same_are_both_named() -> None:
    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(GREETING, lambda ctx: Greeter(ctx, 0))
        yield

    second = plugin_with("second", worker_scope=worker_scope)
    worker = worker_with(required=[Greeting(), second])
    says = "plugins 'greeting' and 'second' both provide 'greeting'"
    with pytest.raises(PluginError, match=says):
        await worker.start()


async def test_async_factory_is_refused() -> None:
    async def factory(_ctx: Any) -> Greeter:
        raise AssertionError("it is never called")

    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(GREETING, factory)  # type: ignore[arg-type]  # what is tested
        yield

    worker = worker_with(required=[plugin_with("bad", worker_scope=worker_scope)])
    with pytest.raises(PluginError, match="the factory of 'greeting' is async"):
        await worker.start()


# ------------------------------------------------------------------------- options of a task


@dataclass(frozen=True)
class Limits:
    rate: float = 1.0
    burst: int = 5
    window: timedelta = timedelta(seconds=1)
    key: Callable[[Any], str] | None = None
    labels: tuple[str, ...] = ()


class Limiting(Plugin[None]):
    name: ClassVar[str] = "limiting"
    task_options = Limits

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        self.seen.append(ctx.options(Limiting))


@dataclass(frozen=True)
class Needed:
    key: str


class Needing(Plugin[None]):
    name: ClassVar[str] = "needing"
    task_options = Needed


async def test_hook_reads_the_options_of_the_task_type() -> None:
    def key(task: Any) -> str:
        return str(task)

    limiting = Limiting()
    async with serving(
        required=[limiting], rate=3, key=key, labels=["a"], window=timedelta(minutes=1)
    ) as harness:
        await harness.run("shout")
        (task,) = harness.worker._running.facade.task_types  # type: ignore[union-attr]  # it runs
        with pytest.raises(UsageError, match="task type 'shout' has no options of Greeting"):
            task.options(Greeting)
    assert limiting.seen == [Limits(3, 5, timedelta(minutes=1), key, ("a",))]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate": "3"}, "task option 'rate' of plugin 'limiting': '3' is not a number"),
        ({"burst": 1.5}, "'burst' of plugin 'limiting': 1.5 is not a whole number"),
        ({"burst": True}, "'burst' of plugin 'limiting': True is not a whole number"),
        ({"window": 30}, "'window' of plugin 'limiting': 30 is not a duration such as 30s"),
        ({"window": "30s"}, "'window' of plugin 'limiting': '30s' is not a duration"),
        ({"key": "name"}, "'key' of plugin 'limiting': 'name' is not a function"),
        ({"labels": "abc"}, "'labels' of plugin 'limiting': 'abc' is not a list"),
    ],
)
def test_option_of_another_type_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        worker_with(required=[Limiting()], **options)


def test_option_without_a_default_has_to_be_given() -> None:
    with pytest.raises(UsageError, match="plugin 'needing' needs the task option 'key'"):
        worker_with(required=[Needing()])
    assert worker_with(required=[Needing()], key="x")


def test_two_plugins_with_one_option_are_both_named() -> None:
    says = (
        "'needing' declares the task option 'key', which exists already: plugin 'limiting' has it"
    )
    with pytest.raises(PluginError, match=says):
        worker_with(required=[Limiting(), Needing()], key="x")


# ------------------------------------------------------------------------- children


async def run_in_child(*plugins: Plugin[Any], **more: Any) -> Any:
    config = replace(QUICK, processes_max=1, hook_timeout=timedelta(seconds=20))
    async with serving(
        process_plugins.look, executor="process", config=config, required=plugins, **more
    ) as harness:
        return [await harness.run("shout", "x", run_id=f"run-{n}", **MANAGED) for n in (1, 2)]


async def test_child_scope_is_entered_in_the_child_with_carrier_and_settings() -> None:
    marking = process_plugins.Marking(process_plugins.Marks(word="hello"))
    first, second = await run_in_child(marking, process_plugins.Quiet())
    for number, result in enumerate((first, second), 1):
        assert result.output["word"] == "hello"
        assert result.output["run"] == f"run-{number}"
        assert result.output["quiet"] == "yes"
        assert result.output["process"] == str(result.output["pid"])
        assert result.output["made"] == ["hello"], "once for each child"
    assert first.output["pid"] == second.output["pid"]


async def test_child_scope_that_cannot_be_entered_fails_the_task_of_a_required_plugin_only() -> (
    None
):
    first, _ = await run_in_child(process_plugins.Breaking())
    assert first.failure is not None
    assert first.failure.error == "plugin 'breaking', child_scope: no room in the child"
    first, _ = await run_in_child(optional=[process_plugins.Breaking()])
    assert first.output["text"] == "x"


async def test_plugin_that_cannot_be_sent_to_a_child_matters_where_there_are_children(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(required=[process_plugins.Unpicklable()]) as harness:
        assert (await harness.run("shout")).output == "HELLO"
    worker = worker_with(
        process_plugins.look, executor="process", required=[process_plugins.Unpicklable()]
    )
    with pytest.raises((PluginError, StartError), match="'unpicklable', child_scope: it cannot be"):
        await worker.start()
    with caplog.at_level(logging.ERROR):
        first, _ = await run_in_child(optional=[process_plugins.Unpicklable()])
    assert first.output["text"] == "x"
    assert "plugin 'unpicklable', child_scope: it cannot be sent" in caplog.text
