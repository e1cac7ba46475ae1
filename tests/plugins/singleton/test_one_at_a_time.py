"""One handler at a time: in one worker, in many, and while they come and go.

Method: workers in this process share a counter of running handlers. Real: the server, the workers.
Fake: nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from fleet_support import Log
from singleton_support import singleton_worker, standby
from support import connected, eventually, unique
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import (
    Client,
    EmbeddedServer,
    NonRetryableError,
    Retry,
    TaskContext,
)
from dagnats_worker_singleton import FENCING

pytestmark = [pytest.mark.server]

BOUND = timedelta(seconds=60)


async def test_many_workers_run_one_handler_in_order(nats_server: EmbeddedServer) -> None:
    kind, log, tokens = unique("one"), Log(), []

    async def settle(ctx: TaskContext, number: int) -> str:
        async with log.running_task(str(number)):
            tokens.append(ctx.use(FENCING).token)
            await asyncio.sleep(0.002)
        return ctx.worker_id

    async with AsyncExitStack() as stack:
        for name in ("w-1", "w-2", "w-3"):
            await stack.enter_async_context(standby(nats_server.url, kind, settle, name))
        client = await stack.enter_async_context(Client(nats_server.url, plugins=()))
        runs = [await client.submit(kind, number) for number in range(60)]
        holders = [await run.result(timeout=BOUND) for run in runs]
    assert log.peak == 1
    assert log.started == [str(number) for number in range(60)]
    assert set(holders) == {"w-1"}, "the oldest is in charge"
    assert tokens == sorted(set(tokens)), "the token grows with each start"


async def test_clean_stop_hands_over(nats_server: EmbeddedServer) -> None:
    kind, log = unique("one"), Log()

    async def settle(ctx: TaskContext, number: int) -> str:
        async with log.running_task(str(number)):
            await asyncio.sleep(0.01)
        return ctx.worker_id

    first = singleton_worker(nats_server.url, "w-1")
    first.handle_singleton(kind, settle)
    async with (
        Client(nats_server.url, plugins=()) as client,
        standby(nats_server.url, kind, settle, "w-2"),
    ):
        await first.start()
        runs = [await client.submit(kind, number) for number in range(40)]
        await eventually(lambda: len(log.ended) >= 10, what="ten of them are done")
        await first.stop()
        holders = [await run.result(timeout=BOUND) for run in runs]
    assert log.peak == 1
    assert log.doubled() == []
    assert holders[-1] == "w-2"


async def test_other_task_types_of_the_worker_run_beside_it(nats_server: EmbeddedServer) -> None:
    single, plain = unique("one"), unique("many")
    meet = asyncio.Barrier(3)

    async def wait_for_all(ctx: TaskContext) -> str:
        async with asyncio.timeout(30):
            await meet.wait()
        return "met"

    worker = singleton_worker(nats_server.url, "w-1")
    worker.handle_singleton(single, wait_for_all)
    worker.handle(plain, wait_for_all)
    async with worker, Client(nats_server.url, plugins=()) as client:
        runs = [await client.submit(kind) for kind in (single, plain, plain)]
        assert [await run.result(timeout=BOUND) for run in runs] == ["met"] * 3


async def test_task_that_is_tried_again_holds_up_those_behind_it(
    nats_server: EmbeddedServer,
) -> None:
    kind, started = unique("one"), []

    async def settle(ctx: TaskContext, number: int) -> int:
        started.append((number, ctx.attempt))
        if number == 0 and ctx.attempt == 1:
            raise RuntimeError("not yet")
        if number == 1:
            raise NonRetryableError("never")
        return number

    retry = Retry(stop=stop_after_attempt(3), wait=wait_fixed(0.3))
    async with (
        standby(nats_server.url, kind, settle, "w-1", retry=retry),
        Client(nats_server.url, plugins=()) as client,
    ):
        runs = [await client.submit(kind, number) for number in range(3)]
        assert await runs[2].result(timeout=BOUND) == 2
    assert started == [(0, 1), (0, 2), (1, 1), (2, 1)]


async def test_sticky_task_does_not_run_beside_it(nats_server: EmbeddedServer) -> None:
    """A task that is bound to one worker would run there, whoever is in charge."""
    kind = unique("one")

    async def settle(ctx: TaskContext) -> str:
        return ctx.worker_id

    async with standby(nats_server.url, kind, settle, "w-1"), connected(nats_server.url) as nc:
        js = nc.jetstream()
        consumers = await js.consumers_info("STICKY_TASKS")
    assert [one.config.filter_subject for one in consumers] == []
