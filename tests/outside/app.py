"""Runs tasks on a server of its own, and prints as JSON what became of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import timedelta
from typing import Any

import nats
from outside_plugin import GREETER

from dagnats_worker import Client, EmbeddedServer, NonRetryableError, TaskContext, Worker, provision

BOUND = timedelta(seconds=30)

worker = Worker()
tried: list[int] = []


@worker.task("vetoed", outside="veto")
async def vetoed(ctx: TaskContext) -> str:
    return "run"


@worker.task("delayed", outside="delay")
async def delayed(ctx: TaskContext) -> list[int]:
    return [ctx.deliveries, ctx.attempt]


@worker.task("busy")
async def busy(ctx: TaskContext) -> int:
    tried.append(ctx.attempt)
    if len(tried) == 1:
        raise NonRetryableError("busy")
    return len(tried)


@worker.task("greeted", needs=[GREETER])
async def greeted(ctx: TaskContext, name: str) -> list[str]:
    greeter = ctx.use(GREETER)
    return [greeter.greet(name), greeter.task_id]


async def main() -> None:
    async with EmbeddedServer() as server:
        nc = await nats.connect(server.url)
        js = nc.jetstream()
        await provision(js)
        os.environ["NATS_URL"] = server.url
        found: dict[str, Any] = {}
        async with worker, Client(plugins=[]) as client:
            for task_type in worker.task_types:
                run = await client.submit(task_type, "Ada", run_id=f"run-{task_type}")
                found[task_type] = await run.result(BOUND)
        info = await js.stream_info("WORKFLOW_HISTORY")
        found["marked"] = []
        for sequence in range(1, info.state.messages + 1):
            message = await js.get_msg("WORKFLOW_HISTORY", sequence)
            event_type = json.loads(message.data or b"")["type"]
            found["marked"].append((message.headers or {}).get("Outside") == event_type)
        await nc.close()
        sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
