"""Ten thousand tasks wait for their signals, while the workers are killed and replaced.

Method: workers in processes of their own park every task; one is killed while they do, one when all
are parked, one while the signals come. Then the history of all runs is counted. Real: the server,
the workers, SIGKILL. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack

import pytest
from fleet_support import WorkerProcess, consumer_info, history_counts, queued
from nats.js import JetStreamContext
from signals_support import records
from support import connected, eventually

from dagnats_worker import EmbeddedServer

pytestmark = pytest.mark.server

TASKS = int(os.environ.get("PARKED_TASKS", "10000"))
TASK_TYPE = "approve"
AT_ONCE = 256
WITHIN_S = 120
"""Only a failure waits for so long."""

PROGRAM = """
import sys
from datetime import timedelta
from dagnats_worker import TaskContext, Worker
from dagnats_worker_signals import SignalsPlugin

worker = Worker(sys.argv[1], plugins=[SignalsPlugin()])

@worker.task("approve", ack_wait=timedelta(seconds=5))
async def approve(ctx: TaskContext) -> str:
    return (await ctx.wait_for_signal("approved", timedelta(days=30), park=True)).decode()

worker.run()
"""


class Fleet:
    """The workers; one can be killed, and another one takes its place."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._stack = stack
        self._workers: list[WorkerProcess] = []

    async def start(self) -> None:
        process = WorkerProcess(PROGRAM, self._url)
        self._workers.append(await self._stack.enter_async_context(process))

    async def replace_oldest(self) -> None:
        oldest = self._workers.pop(0)
        oldest.signal(signal.SIGKILL)
        assert await oldest.exit_code() == -signal.SIGKILL
        await self.start()


async def in_parallel(js: JetStreamContext, messages: list[tuple[str, bytes, str]]) -> None:
    """Store messages: subject, data and id."""
    free = asyncio.Semaphore(AT_ONCE)

    async def store(subject: str, data: bytes, message_id: str) -> None:
        async with free:
            headers = {"Nats-Msg-Id": message_id}
            await js.publish(subject, data, headers=headers, timeout=WITHIN_S)

    await asyncio.gather(*(store(*message) for message in messages))


def task_message(run_id: str) -> tuple[str, bytes, str]:
    body = {"task_id": f"{run_id}.step", "run_id": run_id, "step_id": "step"}
    return f"task.{TASK_TYPE}.{run_id}", json.dumps(body).encode(), f"{run_id}.step.queued"


async def test_ten_thousand_parked_tasks_outlive_their_workers(nats_server: EmbeddedServer) -> None:
    run_ids = [f"run-{number}" for number in range(TASKS)]
    async with AsyncExitStack() as stack:
        js = (await stack.enter_async_context(connected(nats_server.url))).jetstream()
        fleet = Fleet(nats_server.url, stack)
        for _ in range(2):
            await fleet.start()

        async def parked(count: int) -> bool:
            return await queued(js, "KV_parked_tasks") >= count

        async def completed(count: int) -> bool:
            events = (await js.stream_info("WORKFLOW_HISTORY")).state.messages
            return events >= starts_and_releases + 2 * count

        submitting = asyncio.create_task(in_parallel(js, [task_message(run) for run in run_ids]))
        await eventually(lambda: parked(TASKS // 4), WITHIN_S, what="a quarter is parked")
        await fleet.replace_oldest()
        await submitting
        await eventually(lambda: parked(TASKS), WITHIN_S, what="all are parked")
        await eventually(lambda: is_empty(js), WITHIN_S, what="no task is in the queue")
        info = await consumer_info(js, TASK_TYPE)
        assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)

        await fleet.replace_oldest()
        starts_and_releases = await queued(js, "WORKFLOW_HISTORY")
        signals = [(f"$KV.signals.{run}.approved", b'"yes"', f"{run}.yes") for run in run_ids]
        sending = asyncio.create_task(in_parallel(js, signals))
        await eventually(lambda: completed(TASKS // 4), WITHIN_S, what="a quarter is completed")
        await fleet.replace_oldest()
        await sending
        await eventually(lambda: completed(TASKS), WITHIN_S, what="all are completed")
        await eventually(lambda: is_empty(js), WITHIN_S, what="no task is in the queue")
        await eventually(lambda: each_once(js, run_ids), WITHIN_S, what="each is completed once")
        assert not await history_counts(js, "step.failed")
        await eventually(lambda: no_records(js), WITHIN_S, what="no task is parked")
        assert await is_empty(js)


async def each_once(js: JetStreamContext, run_ids: list[str]) -> bool:
    counts = await history_counts(js, "step.completed")
    assert max(counts.values()) == 1
    return counts == dict.fromkeys(run_ids, 1)


async def no_records(js: JetStreamContext) -> bool:
    return not await records(js)


async def is_empty(js: JetStreamContext) -> bool:
    return await queued(js) == 0
