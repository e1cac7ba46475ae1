"""A client: submit many tasks, await their results, follow one run event by event, cancel one."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, RunCancelledError, Worker

worker = Worker()


@worker.task("square")
async def square(number: int) -> int:
    return number * number


@worker.task("wait-long")
async def wait_long(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        runs = [await client.submit("square", number) for number in range(5)]
        waiting = (run.result(timeout=timedelta(seconds=10)) for run in runs)
        print(f"squares: {await asyncio.gather(*waiting)}")

        async for event in runs[2].events():
            print(f"event: {event.type} attempt {event.attempt}")

        run = await client.submit("wait-long", 60)
        async for event in run.events():
            if event.type == "step.started":
                await run.cancel()
                break
        try:
            await run.result(timeout=timedelta(seconds=10))
        except RunCancelledError:
            print("cancelled while it ran")


if __name__ == "__main__":
    asyncio.run(main())
