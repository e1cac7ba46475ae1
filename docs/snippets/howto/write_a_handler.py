"""What handlers may take, and the ways in which they end a task."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import msgspec

from dagnats_worker import Client, SyncTaskContext, TaskContext, TaskFailedError, Worker

worker = Worker()


@dataclass
class Image:
    name: str
    width: Annotated[int, msgspec.Meta(gt=0, le=4096)] = 640


@dataclass
class Thumbnail:
    name: str
    width: int


@worker.task("resize")
async def resize(image: Image) -> Thumbnail:
    return Thumbnail(f"small-{image.name}", image.width // 10)


@worker.task("count-words")
async def count_words(ctx: TaskContext, text: str = "") -> int:
    ctx.log.info("counting, attempt %d", ctx.attempt)
    return len(text.split())


@worker.task("shout")
def shout(ctx: SyncTaskContext, text: str) -> str:
    ctx.put_stream("taking a breath")
    return text.upper()


@worker.task("divide")
async def divide(ctx: TaskContext) -> None:
    numbers = ctx.json()
    if numbers["by"] == 0:
        ctx.fail_permanent("division by zero")
    else:
        ctx.complete({"quotient": numbers["number"] / numbers["by"]})


@worker.task("countdown")
async def countdown(ctx: TaskContext, start: int) -> str | None:
    if ctx.iteration < start:
        ctx.continue_({"left": start - ctx.iteration})
        return None
    return "liftoff"


async def main() -> None:
    tasks: list[tuple[str, Any]] = [
        ("resize", {"name": "cat.png", "width": 800}),
        ("resize", {"name": "cat.png", "width": 0}),
        ("count-words", "never lose a task"),
        ("shout", "hello"),
        ("divide", {"number": 9, "by": 2}),
        ("divide", {"number": 9, "by": 0}),
        ("countdown", 2),
    ]
    async with worker, Client() as client:
        for task_type, task_input in tasks:
            run = await client.submit(task_type, task_input)
            try:
                print(f"{task_type}: {await run.result(timeout=timedelta(seconds=10))}")
            except TaskFailedError as error:
                print(f"{task_type}: failed for good: {error}")
        run = await client.submit("count-words")
        print(f"without input: {await run.result(timeout=timedelta(seconds=10))}")


if __name__ == "__main__":
    asyncio.run(main())
