"""Two workers list themselves; somebody else lists them, and follows them until they are gone.

`dagnats-worker workers --watch` shows the same on a terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import nats

from dagnats_worker import EmbeddedServer, Worker, provision
from dagnats_worker_directory import (
    Change,
    Directory,
    DirectoryPlugin,
    DirectorySettings,
    Joined,
    Left,
)


def greeter(url: str, city: str) -> Worker:
    says = DirectorySettings(version="2026.8", metadata={"city": city})
    worker = Worker(url, worker_id=f"worker-{city}", plugins=[DirectoryPlugin(says)])

    @worker.task("greet")
    async def greet(name: str) -> str:
        return f"Hello from {city}, {name}!"

    return worker


async def tell_next(changes: AsyncIterator[Change], kind: type[Joined | Left]) -> None:
    async for change in changes:
        if isinstance(change, kind):
            print(f"{kind.__name__.lower()}: {change.worker.worker_id}")
            return


async def tell_all(directory: Directory) -> None:
    for worker in await directory.list():
        report = worker.report
        types = ", ".join(worker.task_types)
        load = f"{report.slots_in_use} of {report.slots} slots"
        print(f"{worker.worker_id} {worker.version}: {types}, {load}, {report.more['city']}")


async def main() -> None:
    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        directory = Directory.open(connection.jetstream())

        async with aclosing(directory.watch()) as changes:
            async with greeter(server.url, "oslo"):
                await tell_next(changes, Joined)
                async with greeter(server.url, "rome"):
                    await tell_next(changes, Joined)
                    await tell_all(directory)
                await tell_next(changes, Left)
            await tell_next(changes, Left)
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
