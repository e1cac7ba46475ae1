"""Ten thousand tasks, and a worker that is stopped and started again in the middle of them.

Method: three processes beside a real server: one that submits, one worker after another that gets
SIGTERM while it is busy, and this one that reads the history stream. Nothing is fake.
"""

from __future__ import annotations

from collections import Counter

from fleet_support import BOUND_S, WorkerProcess, history_counts, queued
from nats.js import JetStreamContext
from support import connected, eventually

from dagnats_worker import EmbeddedServer

COUNT = 10_000

SUBMIT = """
import asyncio, json, sys
import nats

async def main(url: str, count: int) -> None:
    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=500)
    stored = []
    for number in range(count):
        run = f"run{number}"
        task = {"task_id": f"{run}.step", "run_id": run, "step_id": "step", "input": number}
        stored.append(
            await js.publish_async(
                f"task.work.{run}",
                json.dumps(task).encode(),
                headers={"Nats-Msg-Id": f"{run}.step.queued"},
            )
        )
    await asyncio.gather(*stored)
    await client.close()
    print("submitted", count, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

WORK = """
import asyncio, sys
from dagnats_worker import TaskContext, Worker

worker = Worker(sys.argv[1])

@worker.task("work")
async def work(ctx: TaskContext, number: int) -> int:
    await asyncio.sleep(0.001)
    return number + 1

print("starts", flush=True)
worker.run()
"""


async def test_ten_thousand_tasks_survive_two_restarts_of_their_worker(
    nats_server: EmbeddedServer,
) -> None:
    async with connected(nats_server.url) as client:
        js = client.jetstream()
        async with WorkerProcess(SUBMIT, nats_server.url, str(COUNT)) as submitting:
            for stop_after in (COUNT // 4, COUNT // 2):
                async with WorkerProcess(WORK, nats_server.url) as worker:
                    await eventually(lambda n=stop_after: ended(js, n), BOUND_S)
                    worker.signal()
                    assert await worker.exit_code() == 0, worker.output
                assert await queued(js), "the worker was stopped before the end"
            async with WorkerProcess(WORK, nats_server.url) as worker:
                await submitting.line(f"submitted {COUNT}")

                async def all_acked() -> bool:
                    return not await queued(js)

                await eventually(all_acked, BOUND_S)
                worker.signal()
                assert await worker.exit_code() == 0, worker.output
        runs = Counter({f"run{number}": 1 for number in range(COUNT)})
        assert await history_counts(js, "step.completed") == runs


async def ended(js: JetStreamContext, count: int) -> bool:
    """Whether about so many tasks have ended; each has a start and an end in the history."""
    return await queued(js, "WORKFLOW_HISTORY") >= 2 * count
