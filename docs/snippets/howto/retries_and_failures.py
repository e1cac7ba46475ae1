"""Failures: what is tried again, after how long, and where the task is when nothing helped."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import nats
from tenacity import (
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_fixed,
)

from dagnats_worker import (
    Client,
    NonRetryableError,
    Retry,
    RetryAfterError,
    TaskContext,
    TaskFailedError,
    Worker,
    WorkerConfig,
)

worker = Worker()

PATIENT = Retry(
    stop=stop_after_attempt(10) | stop_after_delay(3600),
    wait=wait_exponential(multiplier=0.1, max=30),
    retry=retry_if_exception_type((ConnectionError, TimeoutError)),
)


@worker.task("mirror", retry=PATIENT)
async def mirror(ctx: TaskContext, url: str) -> str:
    if ctx.attempt < 3:
        raise ConnectionError(f"{url} does not answer")
    if url.endswith("/"):
        raise IsADirectoryError(url)
    return f"{url} after {ctx.attempt} attempts"


@worker.task("geocode")
async def geocode(ctx: TaskContext, place: str) -> str:
    if ctx.attempt == 1:
        raise RetryAfterError("429 Too Many Requests", timedelta(seconds=0.2))
    return f"{place}: 59.9 N, 10.7 E"


@worker.task("invoice", retry=Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.1)))
async def invoice(ctx: TaskContext, order: int) -> None:
    if order < 0:
        raise NonRetryableError(f"there is no order {order}")
    raise RuntimeError(f"printer on fire, attempt {ctx.attempt}")


async def main() -> None:
    tasks = [
        ("mirror", "https://example.org"),
        ("mirror", "https://example.org/"),
        ("geocode", "Oslo"),
        ("invoice", -1),
        ("invoice", 7),
    ]
    last_failed = ""
    async with worker, Client() as client:
        for task_type, task_input in tasks:
            run = await client.submit(task_type, task_input)
            try:
                print(f"{task_type}: {await run.result(timeout=timedelta(seconds=10))}")
            except TaskFailedError as error:
                print(f"{task_type}: failed for good: {error}")
                last_failed = error.run_id
    await show_dead_letter(last_failed)


async def show_dead_letter(run_id: str) -> None:
    connection = await nats.connect(WorkerConfig().urls)
    letter = await connection.jetstream().get_last_msg(
        "DEAD_LETTERS", f"dead.invoice.{run_id}.invoice"
    )
    headers = letter.headers or {}
    for name in ("Dagnats-Dlq-Task", "Dagnats-Dlq-Attempts", "Dagnats-Dlq-Error"):
        print(f"{name}: {headers[name]}")
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
