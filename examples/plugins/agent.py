"""An agent that saves what it knows, asks a human, loses two workers, and finishes all the same.

Its loop is one step, and each turn of it is a task of its own. What it knows is a checkpoint, so
the turn in which its worker is killed goes on where it was. While it waits for the human it is
parked: no worker holds it, and for a while none is even there.

    pip install 'dagnats-worker[checkpoint,signals,embedded]'
    python agent.py

The program starts a server, and each worker as a process of its own, which it then kills.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import nats

from dagnats_worker import Client, EmbeddedServer, Run, TaskContext, Worker, provision
from dagnats_worker_checkpoint import Checkpoint

SOURCES = ("minutes", "letters", "accounts")
LEASE = timedelta(seconds=2)
A_DAY = timedelta(days=1)


@dataclass
class Notes:
    """What the agent knows."""

    plan: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)


def say(text: str) -> None:
    print(text, flush=True)


async def think(*, slowly: bool = False) -> None:
    """Where a model would be asked."""
    await asyncio.sleep(60 if slowly else 0)


async def agent(ctx: TaskContext, question: str) -> None:
    """Plan, read, ask, answer: one turn each."""
    checkpoint = Checkpoint(ctx, Notes)
    notes = await checkpoint.load(default=Notes())
    match ctx.iteration:
        case 0:
            notes.plan = list(SOURCES)
            await checkpoint.save(notes)
            say(f"turn 0: plans to read {len(notes.plan)} sources")
            ctx.continue_()
        case 1:
            for source in notes.plan[len(notes.read) :]:
                await think(slowly=source == "letters" and ctx.deliveries == 1)
                notes.read.append(source)
                await checkpoint.save(notes)
                say(f"turn 1: has read the {source}")
            ctx.continue_()
        case _:
            say("turn 2: asks a human")
            verdict = await ctx.wait_for_signal("verdict", A_DAY, park=True)
            ctx.complete(f"{question} After {len(notes.read)} sources: {verdict.decode()}")


@asynccontextmanager
async def worker_process(url: str, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own; killed without a warning at the end of the block."""
    program = [sys.executable, __file__, url]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def tell(name: str, process: asyncio.subprocess.Process, until: str) -> None:
    """Print what a worker prints, up to a line."""
    assert process.stdout is not None, "it is piped"
    async for line in process.stdout:
        say(f"{name}: {line.decode().strip()}")
        if until in line.decode():
            return


async def main(url: str) -> None:
    async with Client(url) as client:
        run = await client.submit("agent", "Who paid for the bridge?")
        async with worker_process(url, "worker 1") as process:
            await tell("worker 1", process, until="has read the minutes")
        say("worker 1 is killed")
        async with worker_process(url, "worker 2") as process:
            await tell("worker 2", process, until="asks a human")
            await parked(client.run(run.run_id))
        say("worker 2 is killed, and nobody waits any more")
        await run.signal("verdict", b"the guild of millers")
        say("a human answers")
        async with worker_process(url, "worker 3") as process:
            await tell("worker 3", process, until="asks a human")
            say(await run.result(timeout=timedelta(seconds=30)))


async def parked(run: Run) -> None:
    """Wait until the task is stored, so that its worker can go."""
    async for event in run.events():
        if event.type == "step.released" and event.payload["reason"] == "parked":
            return


async def with_server() -> None:
    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        await connection.close()
        await main(server.url)


if __name__ == "__main__":
    if sys.argv[1:]:
        worker = Worker(sys.argv[1])
        worker.handle("agent", agent, ack_wait=LEASE)
        worker.run()
    else:
        asyncio.run(with_server())
