"""How many handlers run at once, and which worker of a fleet runs them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from dagnats_worker import Client, Worker

PATIENCE = timedelta(seconds=10)

everyone = Worker(max_tasks=8)
gpu = Worker(groups=["gpu"])
cpu = Worker(groups=["cpu"], max_tasks=2)

running = peak = 0
order: list[int] = []


@everyone.task("crawl", concurrency=3)
async def crawl(page: int) -> None:
    global running, peak
    running += 1
    peak = max(peak, running)
    await asyncio.sleep(0.05)
    running -= 1


@everyone.task("ledger", concurrency=1)
async def ledger(entry: int) -> None:
    order.append(entry)


@gpu.task("render")
async def render_on_gpu(frame: int) -> str:
    return f"frame {frame} on the gpu"


@cpu.task("render")
async def render_on_cpu(frame: int) -> str:
    return f"frame {frame} on the cpu"


async def main() -> None:
    async with everyone, gpu, cpu, Client() as client:
        runs = [await client.submit("crawl", page) for page in range(12)]
        await asyncio.gather(*(run.result(timeout=PATIENCE) for run in runs))
        print(f"12 pages, at most {peak} at once")

        runs = [await client.submit("ledger", entry) for entry in range(5)]
        await asyncio.gather(*(run.result(timeout=PATIENCE) for run in runs))
        print(f"entries in the order {order}")

        for frame, group in enumerate(["gpu", "cpu"]):
            run = await client.submit("render", frame, group=group)
            print(await run.result(timeout=PATIENCE))


if __name__ == "__main__":
    asyncio.run(main())
