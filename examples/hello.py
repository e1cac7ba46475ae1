"""Typed handlers: the annotation says what comes in, the return value is what goes out.

Input that does not fit fails for good, with the field in the message, before the handler is called.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, TaskFailedError, Worker

worker = Worker()


@dataclass
class Person:
    name: str
    born: int


@dataclass
class Greeting:
    text: str
    age: int


@worker.task("hello")
async def hello(person: Person) -> Greeting:
    return Greeting(text=f"Hello, {person.name}!", age=2026 - person.born)


async def main() -> None:
    async with nats_server(), worker, Client() as client:
        run = await client.submit("hello", {"name": "Ada", "born": 1815})
        print(await run.result(timeout=timedelta(seconds=10)))

        run = await client.submit("hello", {"name": "Grace", "born": "1906"})
        try:
            await run.result(timeout=timedelta(seconds=10))
        except TaskFailedError as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    asyncio.run(main())
