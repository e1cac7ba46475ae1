"""A singleton: one handler at a time in the whole fleet, and a takeover when its worker stops.

    pip install 'dagnats-worker[singleton,embedded]'
    python singleton.py

Three workers stand ready, and one is in charge. The account notes the highest token that it has
seen, so that a holder that was stopped in the middle and wakes up cannot book any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import nats

from dagnats_worker import Client, EmbeddedServer, TaskContext, Worker, provision
from dagnats_worker_singleton import FENCING

WITHIN = timedelta(seconds=30)


@dataclass
class Account:
    """A resource that knows who is too late."""

    balance: int = 0
    token: int = 0

    def book(self, amount: int, token: int) -> None:
        if token < self.token:
            raise PermissionError(f"token {token} is older than {self.token}")
        self.balance, self.token = self.balance + amount, token


account = Account()
running: set[str] = set()


async def book(ctx: TaskContext, amount: int) -> str:
    running.add(ctx.worker_id)
    assert len(running) == 1, "nobody else runs"
    await asyncio.sleep(0.01)
    account.book(amount, ctx.use(FENCING).token)
    running.remove(ctx.worker_id)
    return ctx.worker_id


def new_worker(url: str, name: str) -> Worker:
    worker = Worker(url, worker_id=name)
    worker.handle_singleton("book", book)
    return worker


async def main(url: str) -> None:
    workers = [new_worker(url, name) for name in ("teller-1", "teller-2", "teller-3")]
    for worker in workers:
        await worker.start()
    async with Client(url) as client:
        for holder in workers:
            runs = [await client.submit("book", amount) for amount in range(1, 11)]
            tellers = {await run.result(timeout=WITHIN) for run in runs}
            print(f"{', '.join(sorted(tellers))} booked 10 times; the balance is {account.balance}")
            await holder.stop()
            print(f"{holder.worker_id} has stopped")


async def with_server() -> None:
    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        await connection.close()
        await main(server.url)


if __name__ == "__main__":
    asyncio.run(with_server())
