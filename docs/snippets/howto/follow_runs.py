"""A client: submit, wait, follow, stream, cancel, and come back to a run later."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta

from dagnats_worker import Client, RunCancelledError, TaskContext, Worker

PATIENCE = timedelta(seconds=10)
ORDER = f"order-{secrets.token_hex(4)}"

worker = Worker()


@worker.task("pack")
async def pack(ctx: TaskContext, items: int) -> str:
    for item in range(items):
        await ctx.put_stream({"packed": item + 1})
    return f"{items} items for {ctx.metadata.get('customer', 'nobody')}"


@worker.task("wait-for-pickup")
async def wait_for_pickup(hours: float) -> None:
    await asyncio.sleep(hours * 3600)


async def submit_and_wait(client: Client) -> None:
    run = await client.submit("pack", 3, run_id=ORDER, metadata={"customer": "Ada"})
    print(await run.result(timeout=PATIENCE))
    again = await client.submit("pack", 3, run_id=ORDER)
    print(f"submitted before: {again.duplicate}")


async def look_back(client: Client) -> None:
    async for event in client.run(ORDER, "pack").events():
        print(f"{event.type}: {event.payload}")
    status = await client.status(ORDER)
    print(f"{status.status}, {status.steps['pack'].attempts} attempt")


async def read_stream(client: Client) -> None:
    run = await client.submit("pack", 2, stream=True)
    async for chunk in run.stream():
        print(f"chunk: {chunk.decode()}")


async def cancel(client: Client) -> None:
    run = await client.submit("wait-for-pickup", 24)
    try:
        await run.result(timeout=timedelta(seconds=0.2))
    except TimeoutError:
        print("still waiting; the run goes on")
    await run.cancel()
    try:
        await run.result(timeout=PATIENCE)
    except RunCancelledError:
        print("cancelled")


async def main() -> None:
    async with worker, Client() as client:
        await submit_and_wait(client)
        await look_back(client)
        await read_stream(client)
        await cancel(client)


if __name__ == "__main__":
    asyncio.run(main())
