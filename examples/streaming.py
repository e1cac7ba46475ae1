"""Streaming: a handler sends chunks while it runs, and a client reads them as they come.

Nobody stores chunks. ``submit(stream=True)`` listens before the task is in its queue, so the first
one is not missed.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, TaskContext, Worker

worker = Worker()


@worker.task("write")
async def write(ctx: TaskContext, text: str) -> int:
    words = text.split()
    for word in words:
        await ctx.put_stream(word.encode())
        await asyncio.sleep(0.05)
    return len(words)


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        run = await client.submit("write", "chunks arrive one by one", stream=True)
        async for chunk in run.stream():
            print(f"chunk: {chunk.decode()}")
        print(f"words: {await run.result(timeout=timedelta(seconds=10))}")


if __name__ == "__main__":
    asyncio.run(main())
