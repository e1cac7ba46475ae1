"""Open pulls and the messages that answer them: none is taken for another.

Method: a real server, which serves the open pulls of a consumer in turn; tasks that come again with
all kinds of delays, so that idle pulls and pulls for queued tasks are open beside each other.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta

import pytest
from nats.aio.client import Client as NatsClient
from support import unique
from tenacity import stop_after_attempt, wait_random

from dagnats_worker import Client, EmbeddedServer, Retry, TaskContext, Worker, WorkerConfig

TASKS = 120
ATTEMPTS = 4
SOON = timedelta(seconds=30)
QUICK = WorkerConfig(drain_pull_expires=timedelta(milliseconds=200))


async def test_pulls_are_answered_and_none_is_forgotten(
    shared_server: EmbeddedServer, nc: NatsClient, caplog: pytest.LogCaptureFixture
) -> None:
    task_type = unique("lanes")
    worker = Worker(shared_server.url, plugins=[], config=QUICK)
    retry = Retry(stop=stop_after_attempt(ATTEMPTS), wait=wait_random(0, 0.6))

    @worker.task(task_type, retry=retry, concurrency=8)
    async def flaky(ctx: TaskContext) -> int:
        if ctx.attempt < ATTEMPTS:
            raise ValueError("not yet")
        return ctx.attempt

    with caplog.at_level(logging.WARNING, "dagnats_worker.source"):
        async with worker, Client(shared_server.url, plugins=[]) as client:
            runs = [await client.submit(task_type) for _ in range(TASKS)]
            results = await asyncio.gather(*(run.result(SOON) for run in runs))
            # A pull that is taken for another one stays open here, and is missed after two seconds.
            await asyncio.sleep(QUICK.drain_pull_expires.total_seconds() + 2.5)
            waiting = await _waiting_pulls(nc, task_type)
    assert results == [ATTEMPTS] * TASKS
    assert "was not answered" not in caplog.text
    assert waiting == 1, "an idle worker keeps one pull open"


async def _waiting_pulls(nc: NatsClient, task_type: str) -> int:
    answer = await nc.request(f"$JS.API.CONSUMER.INFO.TASK_QUEUES.workers-{task_type}")
    waiting: int = json.loads(answer.data)["num_waiting"]
    return waiting
