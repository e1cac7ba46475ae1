"""Two workers share out the orders; the steps of each order go one by one, at one of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack

import nats
from nats.aio.client import Client as NatsClient

from dagnats_worker import Client, EmbeddedServer, TaskContext, Worker, provision
from dagnats_worker_partitions import PartitionsPlugin, group_info

STREAM, GROUP = "TASK_QUEUES", "workers-ship"
STEPS = ("pick", "pack", "post")

done: defaultdict[str, list[str]] = defaultdict(list)


def shipping(url: str, worker_id: str) -> Worker:
    worker = Worker(url, worker_id=worker_id, partitions=8, plugins=[PartitionsPlugin()])

    @worker.task("ship", ordered=True)
    async def ship(ctx: TaskContext, seconds: float) -> str:
        await asyncio.sleep(seconds)
        done[ctx.run_id].append(ctx.step_id)
        return ctx.worker_id

    return worker


async def shared_out(nc: NatsClient, *members: str) -> None:
    """Wait until these members read all partitions."""
    while True:
        info = await group_info(nc, STREAM, GROUP)
        if {one.member for one in info.partitions if one.read} == set(members):
            break
        await asyncio.sleep(0.05)
    owners = " ".join(one.member or "-" for one in info.partitions)
    print(f"partitions: {owners}")


async def order(client: Client, *run_ids: str) -> None:
    """The first step of each takes longest, and the others wait for it."""
    steps = [
        [
            await client.submit("ship", seconds, run_id=run_id, step_id=step)
            for step, seconds in zip(STEPS, (0.3, 0.1, 0.0), strict=True)
        ]
        for run_id in run_ids
    ]
    for run_id, runs in zip(run_ids, steps, strict=True):
        workers = {await run.result() for run in runs}
        print(f"{run_id}: {' '.join(done[run_id])} at {' '.join(sorted(workers))}")


async def main() -> None:
    async with EmbeddedServer() as server, AsyncExitStack() as staying:
        nc = await nats.connect(server.url)
        await provision(nc.jetstream())
        client = await staying.enter_async_context(Client(server.url))
        await staying.enter_async_context(shipping(server.url, "anna"))
        async with shipping(server.url, "bert"):
            await shared_out(nc, "anna", "bert")
            await order(client, "order-1", "order-2", "order-3")
        await shared_out(nc, "anna")
        await order(client, "order-4")
        await nc.close()


if __name__ == "__main__":
    asyncio.run(main())
