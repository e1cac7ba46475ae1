"""A worker is killed half-way; another one goes on where it was, and pauses without losing that.

The first worker is a process of its own, which kills itself before the third row.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import nats

from dagnats_worker import Client, EmbeddedServer, TaskContext, Worker, provision
from dagnats_worker_checkpoint import Checkpoint, CheckpointPlugin


@dataclass
class Progress:
    rows: int = 0


def importer(url: str, *, dies_before: str = "") -> Worker:
    worker = Worker(url, plugins=[CheckpointPlugin()])

    @worker.task("import", ack_wait=timedelta(seconds=1))
    async def import_rows(ctx: TaskContext, rows: list[str]) -> str | None:
        checkpoint = Checkpoint(ctx, Progress)
        progress = await checkpoint.load(default=Progress())
        print(f"begins at row {progress.rows}", flush=True)
        for row in rows[progress.rows :]:
            if row == dies_before:
                os.kill(os.getpid(), signal.SIGKILL)
            print(f"  {row}", flush=True)
            progress.rows += 1
            await checkpoint.save(progress)
        if checkpoint.resumed_from != "review":
            print("pauses for a review")
            await checkpoint.pause("review", timedelta(seconds=0.5))
            return None
        return f"{progress.rows} rows, reviewed"

    return worker


async def main() -> None:
    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        await connection.close()
        async with Client(server.url, plugins=[]) as client:
            run = await client.submit("import", ["one", "two", "three", "four"])
            first = await asyncio.create_subprocess_exec(sys.executable, __file__, server.url)
            print(f"killed by signal {-await first.wait()}")
            async with importer(server.url):
                print(await run.result(timeout=timedelta(seconds=20)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        importer(sys.argv[1], dies_before="three").run()
    else:
        asyncio.run(main())
