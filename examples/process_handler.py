"""CPU-bound handlers: pure Python that computes runs in a process, so that it holds up nobody.

Such a handler takes the input only, and lives at the top level of a module, where the child process
finds it. The guard in the last two lines is needed: the child imports this module too.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, Worker

worker = Worker()


@worker.task("primes", executor="process")
def primes(limit: int) -> dict[str, int]:
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return {"primes": sum(sieve), "process": os.getpid()}


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        run = await client.submit("primes", 100_000)
        answer = await run.result(timeout=timedelta(seconds=30))
        where = "the worker's own" if answer["process"] == os.getpid() else "another"
        print(f"{answer['primes']} primes, counted in {where} process")


if __name__ == "__main__":
    asyncio.run(main())
