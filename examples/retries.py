"""Failures and retries: what is tried again, after how long, and what ends for good.

The strategies are tenacity's. They are asked after each failed attempt; nothing sleeps, the server
keeps the task until it is due again.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tenacity import stop_after_attempt, wait_fixed

from _server import nats_server
from dagnats_worker import (
    Client,
    NonRetryableError,
    Retry,
    RetryAfterError,
    TaskContext,
    TaskFailedError,
    Worker,
)

worker = Worker()


@worker.task("flaky", retry=Retry(stop=stop_after_attempt(3), wait=wait_fixed(0.2)))
async def flaky(ctx: TaskContext) -> str:
    print(f"flaky: attempt {ctx.attempt}")
    if ctx.attempt < 3:
        raise ConnectionError("nobody answers")
    return "at last"


@worker.task("limited")
async def limited(ctx: TaskContext) -> str:
    print(f"limited: attempt {ctx.attempt}")
    if ctx.attempt == 1:
        raise RetryAfterError("429, slow down", timedelta(seconds=0.3))
    return "let in"


@worker.task("hopeless")
async def hopeless(ctx: TaskContext) -> None:
    print(f"hopeless: attempt {ctx.attempt}")
    raise NonRetryableError("the order was deleted")


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        for task_type in ("flaky", "limited", "hopeless"):
            run = await client.submit(task_type)
            try:
                output = await run.result(timeout=timedelta(seconds=10))
                print(f"{task_type}: completed with {output!r}")
            except TaskFailedError as error:
                print(f"{task_type}: failed for good: {error}")


if __name__ == "__main__":
    asyncio.run(main())
