"""Two approvals by a human: one that a handler waits for in its slot, and one that is parked.

A signal is a word to a run. ``wait_for_signal`` returns it, also where it was sent before. With
``park=True`` the task gives up its slot and its message meanwhile, so it may wait for days, and
whichever worker is there when the word comes goes on with it: here it is another one. The handler
is then run again from its beginning.

The program starts a server, and stops it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import nats

from dagnats_worker import Client, EmbeddedServer, Run, TaskContext, Worker, provision
from dagnats_worker.errors import SignalTimeoutError
from dagnats_worker_signals import SignalsPlugin

SOON = timedelta(seconds=30)


async def publish(ctx: TaskContext, title: str) -> str:
    """Ask, wait in the slot, and give up when nobody answers in time."""
    print(f"{title}: who reads it?")
    await ctx.put_stream("asked")
    reader = await ctx.wait_for_signal("reader", SOON)
    print(f"{title}: {reader.decode()} reads it")
    try:
        await ctx.wait_for_signal("approved", timedelta(milliseconds=200))
    except SignalTimeoutError as error:
        return f"not published: {error}"
    return "published"


async def pay(ctx: TaskContext, amount: int) -> str:
    """Wait for a day without a slot; this is run once for the question and once for the answer."""
    print(f"pay {amount}: begins")
    answer = await ctx.wait_for_signal("approved", timedelta(days=1), park=True)
    return f"paid {amount}, approved by {answer.decode()}"


def make_worker(url: str) -> Worker:
    worker = Worker(url, plugins=[SignalsPlugin()])
    worker.handle_typed("publish", publish)
    worker.handle_typed("pay", pay)
    return worker


async def asked(run: Run) -> None:
    """Wait until the handler has asked."""
    async for _ in run.stream():
        return


async def parked(run: Run) -> None:
    """Wait until the task is given up; it waits all the same."""
    async for event in run.events():
        if event.type == "step.released":
            print(f"{event.step_id}: {event.payload['reason']}")
            return


async def main() -> None:
    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        await connection.close()
        async with Client(server.url) as client:
            await ask(client, server.url)


async def ask(client: Client, url: str) -> None:
    async with make_worker(url):
        article = await client.submit("publish", "On looms", stream=True)
        await asked(article)
        await article.signal("reader", b"Ada")
        print(await article.result(SOON))
        payment = await client.submit("pay", 42)
        await parked(payment)
    print("nobody works, and the payment waits")
    await payment.signal("approved", b"Ada")
    async with make_worker(url):
        print(await payment.result(SOON))


if __name__ == "__main__":
    asyncio.run(main())
