"""A raw handler: only the context. It reads the input itself and records how the task ends.

Recording does no I/O: the outcome is published once, after the handler has returned.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, TaskContext, TaskFailedError, Worker

worker = Worker()


async def divide(ctx: TaskContext) -> None:
    numbers = ctx.json()
    if numbers["by"] == 0:
        ctx.fail_permanent("division by zero")
        return
    ctx.log.info("dividing")  # carries run, step, task type and attempt
    ctx.complete({"quotient": numbers["number"] / numbers["by"], "header": ctx.headers["Asked-By"]})


worker.handle("divide", divide)


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        for divisor in (4, 0):
            run = await client.submit(
                "divide", {"number": 10, "by": divisor}, headers={"Asked-By": "Ada"}
            )
            try:
                print(await run.result(timeout=timedelta(seconds=10)))
            except TaskFailedError as error:
                print(f"failed ({error.failure_type}): {error}")


if __name__ == "__main__":
    asyncio.run(main())
