"""Blocking handlers: a plain function runs in a thread, so the event loop and the leases go on.

Its context has the same names as the one of an async handler, and its calls block.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, SyncTaskContext, Worker

worker = Worker()


@worker.task("digest", concurrency=4)
def digest(ctx: SyncTaskContext, text: str) -> dict[str, str]:
    ctx.put_stream("hashing")
    in_thread = threading.current_thread() is not threading.main_thread()
    time.sleep(0.2)  # blocks this thread and nobody else
    return {
        "digest": hashlib.sha256(text.encode()).hexdigest()[:12],
        "ran": "in a thread" if in_thread else "on the event loop",
    }


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        began = time.monotonic()
        runs = [await client.submit("digest", f"part {number}") for number in range(4)]
        for run in runs:
            print(await run.result(timeout=timedelta(seconds=10)))
        side_by_side = time.monotonic() - began < 4 * 0.2
        print("side by side" if side_by_side else "one after the other")


if __name__ == "__main__":
    asyncio.run(main())
