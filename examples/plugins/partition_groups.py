"""A group is made, looked at, mended and deleted, without a worker.

`dagnats-worker groups` does the same from a shell.
"""

from __future__ import annotations

import asyncio

import nats
from nats.aio.client import Client

from dagnats_worker import EmbeddedServer, provision
from dagnats_worker_partitions import (
    GroupExistsError,
    PartitionFilter,
    add_members,
    create_group,
    delete_group,
    drop_members,
    group_info,
)

STREAM, GROUP = "TASK_QUEUES", "workers-resize"
FILTERS = [PartitionFilter("task.resize.>")]


async def tell(nc: Client, what: str) -> None:
    info = await group_info(nc, STREAM, GROUP)
    owners = " ".join(one.member or "nobody" for one in info.partitions)
    print(f"{what}: {owners}")


async def main() -> None:
    async with EmbeddedServer() as server:
        nc = await nats.connect(server.url)
        await provision(nc.jetstream())
        await create_group(nc, STREAM, GROUP, 4, FILTERS, max_buffered_messages=1024)
        await tell(nc, "made")
        await add_members(nc, STREAM, GROUP, ["worker-1", "worker-2", "worker-3"])
        await tell(nc, "three members")
        await drop_members(nc, STREAM, GROUP, ["worker-2"])
        await tell(nc, "one is dead")
        try:
            await create_group(nc, STREAM, GROUP, 8, FILTERS)
        except GroupExistsError:
            print("another number of partitions is another group")
        lost = await delete_group(nc, STREAM, GROUP)
        print(f"deleted, {lost} messages lost")
        await nc.close()


if __name__ == "__main__":
    asyncio.run(main())
