"""Handlers of singletons in a test of their user: no server, no group, the same handlers.

Method: the published harness. Real: the worker, the plugins. Fake: the server, which is in memory.
"""

from __future__ import annotations

import asyncio

from fleet_support import Log
from singleton_support import singleton_worker

from dagnats_worker import TaskContext
from dagnats_worker.testing import WorkerHarness
from dagnats_worker_singleton import FENCING


async def test_handlers_run_one_at_a_time_and_their_tokens_grow() -> None:
    log, tokens = Log(), []

    async def settle(ctx: TaskContext, number: int) -> int:
        async with log.running_task(str(number)):
            tokens.append(ctx.use(FENCING).token)
            await asyncio.sleep(0)
        return number

    worker = singleton_worker("nats://127.0.0.1:1", "w-1")
    worker.handle_singleton("settle", settle)
    async with WorkerHarness(worker) as harness:
        results = await asyncio.gather(*(harness.run("settle", number) for number in range(3)))
    assert [result.output for result in results] == [0, 1, 2]
    assert log.peak == 1
    assert tokens == [1, 2, 3]
