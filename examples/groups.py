"""Groups: two workers serve one task type, and each takes only the tasks of its own group."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, TaskContext, Worker

gpu = Worker(groups=["gpu"])
cpu = Worker(groups=["cpu"])


@gpu.task("render")
async def render_fast(ctx: TaskContext, frame: int) -> str:
    return f"frame {frame} on the gpu"


@cpu.task("render")
async def render_slowly(ctx: TaskContext, frame: int) -> str:
    return f"frame {frame} on the cpu"


async def main() -> None:
    async with nats_server(), gpu, cpu, Client() as client:
        for frame, group in enumerate(["gpu", "cpu", "gpu"]):
            run = await client.submit("render", frame, group=group)
            print(await run.result(timeout=timedelta(seconds=10)))


if __name__ == "__main__":
    asyncio.run(main())
