"""What a plugin has nothing to do in is not called, and which task it is called for it can ask.

Method: plugins as anybody writes them, in a real worker; what they note is compared with what they
were promised. Fake: the NATS server, which is the in-memory one of ``dagnats_worker.testing``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hook_support import Notes, plugin_with, shout

from dagnats_worker import (
    BaseContext,
    Capability,
    Plugin,
    PluginError,
    SyncTaskContext,
    TaskContext,
    Worker,
)
from dagnats_worker._plugin_checks import OF_TASKS
from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import Message, WorkerFacade, current_context
from dagnats_worker.testing import MemoryTransport, WorkerHarness

# ------------------------------------------------------------------------- skip_hooks


def noting(name: str, notes: Notes, skipped: Callable[[], tuple[str, ...]]) -> Plugin[None]:
    """A plugin that notes its hooks, and skips some of them whenever a worker starts."""

    def note(hook: str) -> Callable[[], Any]:
        async def noted() -> None:
            notes.append(f"{name} {hook}")

        return noted

    def scope(hook: str) -> Callable[[], Any]:
        @asynccontextmanager
        async def noted() -> AsyncIterator[None]:
            notes.append(f"{name} {hook}")
            yield

        return noted

    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        worker.skip_hooks(*skipped())
        yield
        notes.append(f"{name} left")

    hooks = {hook: scope(hook) if hook.endswith("_scope") else note(hook) for hook in OF_TASKS}
    return plugin_with(name, worker_scope=worker_scope, **hooks)


async def fail_once(ctx: TaskContext) -> None:
    if ctx.attempt == 1:
        raise ValueError("no luck")


ALL = ["task_scope", "pre_handle", "pre_publish", "on_error", "outcome_scope", "pre_publish"]


async def notes_of(*plugins: Plugin[None], notes: Notes) -> Notes:
    """What is noted of a task that fails, and of the end of the worker."""
    notes.clear()
    async with WorkerHarness({"shout": fail_once}, plugins=plugins) as harness:
        await harness.run("shout")
    return list(notes)


@pytest.mark.parametrize("hook", sorted({*ALL}))
async def test_hook_that_is_skipped_is_not_called_and_all_others_are(hook: str) -> None:
    notes: Notes = []
    plugins = [noting("one", notes, lambda: (hook,)), noting("two", notes, tuple)]
    found = await notes_of(*plugins, notes=notes)
    assert [one for one in found if one.startswith("two ")] == [
        f"two {one}" for one in (*ALL, "left")
    ]
    assert [one for one in found if one.startswith("one ")] == [
        f"one {one}" for one in (*ALL, "left") if one != hook
    ]


def worker_with(*plugins: Plugin[None]) -> Worker:
    worker = Worker(MemoryTransport(), plugins=plugins)
    worker.handle("shout", shout)
    return worker


async def test_worker_has_nothing_to_call_where_all_is_skipped() -> None:
    async with worker_with(noting("one", [], lambda: OF_TASKS)) as worker:
        hooks = [getattr(worker._hooks, hook) for hook in OF_TASKS]
    assert hooks == [()] * len(OF_TASKS)


async def test_start_that_fails_leaves_nothing_skipped_for_the_next_one() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise ValueError("no licence")
        yield

    first = noting("one", [], lambda: ("task_scope",))
    worker = worker_with(first, plugin_with("two", worker_scope=broken))
    with pytest.raises(PluginError, match="no licence"):
        await worker.start()
    assert worker._hooks.task_scope


async def test_plugin_that_leaves_takes_nothing_of_what_is_skipped_back() -> None:
    plugins = [noting("one", [], lambda: ("pre_handle",)), plugin_with("two")]
    async with worker_with(*plugins) as worker:
        hooks, (one, two) = worker._hooks, worker._hooks.members
        two.leave("quarantined")
        assert not hooks.pre_handle
        assert hooks.pre_publish
        one.leave("quarantined")
        assert not hooks.pre_publish


@pytest.mark.parametrize("hook", ["worker_scope", "open_source", "child_scope", "pre_handel"])
async def test_hook_that_cannot_be_skipped_is_refused_with_those_that_can(hook: str) -> None:
    plugin = noting("one", [], lambda: ("pre_handle", hook))
    worker = worker_with(plugin)
    with pytest.raises(PluginError, match=rf"hook '{hook}' is not one of a task: task_scope, "):
        await worker.start()
    assert worker._hooks.pre_handle, "nothing was skipped"


async def test_only_the_start_of_a_worker_can_skip() -> None:
    facades: list[WorkerFacade] = []
    caught: list[str] = []

    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        facades.append(worker)
        yield

    async def pre_handle(ctx: TaskContext) -> None:
        with pytest.raises(UsageError, match="worker_scope") as error:
            facades[0].skip_hooks("pre_handle")
        caught.append(str(error.value))

    plugin = plugin_with(worker_scope=worker_scope, pre_handle=pre_handle)
    async with WorkerHarness({"shout": shout}, plugins=[plugin]) as harness:
        await harness.run("shout")
    assert len(caught) == 1


# ------------------------------------------------------------------------- current_context


async def test_task_is_known_to_its_hooks_its_handler_and_what_these_start() -> None:
    seen: list[BaseContext | None] = []

    def look() -> None:
        seen.append(current_context())

    async def look_later() -> None:
        await asyncio.sleep(0)
        look()

    async def pre_publish(ctx: TaskContext, message: Message) -> None:
        look()

    async def work(ctx: TaskContext) -> None:
        look()
        await asyncio.to_thread(look)
        await asyncio.create_task(look_later())

    async with WorkerHarness(
        {"work": work}, plugins=[plugin_with(pre_publish=pre_publish)]
    ) as harness:
        result = await harness.run("work")
        assert current_context() is None
    assert [one.run_id if one else "" for one in seen] == [result.run_id] * 5


async def test_blocking_handler_knows_its_task_too() -> None:
    def work(ctx: SyncTaskContext) -> bool:
        found = current_context()
        return found is not None and found.run_id == ctx.run_id

    async with WorkerHarness({"work": work}) as harness:
        assert (await harness.run("work")).output is True


async def test_tasks_at_the_same_time_do_not_know_of_each_other() -> None:
    async def work(ctx: TaskContext) -> bool:
        await asyncio.sleep(0)
        return current_context() is ctx

    async with WorkerHarness({"work": work}) as harness:
        results = await asyncio.gather(*(harness.run("work") for _ in range(4)))
    assert [result.output for result in results] == [True] * 4


async def test_log_records_of_the_worker_about_a_task_know_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known: list[str] = []

    class Looking(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            found = current_context()
            known.append(found.run_id if found else "")
            return True

    async def fail(ctx: TaskContext) -> None:
        raise ValueError("no luck")

    logger = logging.getLogger("dagnats_worker.task")
    looking = Looking()
    logger.addFilter(looking)
    try:
        async with WorkerHarness({"fail": fail}) as harness:
            result = await harness.run("fail")
    finally:
        logger.removeFilter(looking)
    assert set(known) == {result.run_id}


class Big:
    """What a handler might leave behind."""


async def test_nothing_of_a_task_is_kept_when_it_has_ended() -> None:
    big: Capability[Big] = Capability("big", install="nothing")
    kept: list[weakref.ref[Big]] = []

    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        worker.provide(big, lambda ctx: Big())
        yield

    async def work(ctx: TaskContext) -> None:
        kept.append(weakref.ref(ctx.use(big)))

    gc.collect()
    gc.disable()
    try:
        async with WorkerHarness(
            {"work": work}, plugins=[plugin_with(worker_scope=worker_scope)]
        ) as harness:
            await harness.run("work")
            await asyncio.sleep(0)
            assert kept[0]() is None, "a ring of references that only the collector breaks"
    finally:
        gc.enable()
