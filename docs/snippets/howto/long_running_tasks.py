"""Handlers that take long: limits, cancellation, threads, processes."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from tenacity import stop_after_attempt

from dagnats_worker import (
    Client,
    Retry,
    RunCancelledError,
    SyncTaskContext,
    TaskContext,
    TaskFailedError,
    Worker,
)

PATIENCE = timedelta(seconds=20)
ONE_ATTEMPT = Retry(stop=stop_after_attempt(1))

worker = Worker()

told_to_stop: list[str] = []


@worker.task("transcode")
async def transcode(ctx: TaskContext, seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        told_to_stop.append("transcode")  # the place to remove temporary files
        raise
    return "done"


@worker.task("archive")
def archive(ctx: SyncTaskContext, files: int) -> str:
    for number in range(files):
        if ctx.cancelled.wait(0.1):  # a sleep that ends when the handler is to stop
            told_to_stop.append("archive")
            return f"stopped after {number} files"
    return f"{files} files"


@worker.task("scan", timeout=timedelta(seconds=0.5), retry=ONE_ATTEMPT)
async def scan(seconds: float) -> None:
    await asyncio.sleep(seconds)


@worker.task("primes", executor="process", concurrency=2)
def primes(limit: int) -> dict[str, int]:
    found = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit))
    return {"primes": found, "process": os.getpid()}


async def main() -> None:
    async with worker, Client() as client:
        for task_type, task_input in (("transcode", 60), ("archive", 600)):
            run = await client.submit(task_type, task_input)
            async for event in run.events():
                if event.type == "step.started":
                    await run.cancel()
                    break
            try:
                await run.result(timeout=PATIENCE)
            except RunCancelledError:
                print(f"{task_type}: cancelled")

        run = await client.submit("scan", 60)
        try:
            await run.result(timeout=PATIENCE)
        except TaskFailedError as error:
            print(f"scan: {error}")

        run = await client.submit("primes", 20_000)
        result = await run.result(timeout=PATIENCE)
        here = "here" if result["process"] == os.getpid() else "in another process"
        print(f"primes: {result['primes']}, counted {here}")
    print(f"told to stop: {sorted(told_to_stop)}")


if __name__ == "__main__":
    asyncio.run(main())
