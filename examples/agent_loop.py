"""An agent loop: a step that runs turn by turn, each turn a task of its own.

``continue_`` ends a turn and has the next one dispatched, until a turn completes the step. Turns
may run on different workers, and a crash repeats one turn and not the whole loop.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, TaskContext, Worker

worker = Worker()

TURNS = ("think", "search", "read")


@worker.task("agent")
async def agent(ctx: TaskContext, question: str) -> None:
    if ctx.iteration < len(TURNS):
        print(f"turn {ctx.iteration}: {TURNS[ctx.iteration]}")
        ctx.continue_({"did": TURNS[ctx.iteration]})
    else:
        ctx.complete(f"{question} 42.")


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        run = await client.submit("agent", "Six by seven?")
        print(await run.result(timeout=timedelta(seconds=10)))


if __name__ == "__main__":
    asyncio.run(main())
