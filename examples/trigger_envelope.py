"""Runs that a trigger started: take the data out of its envelope, or read the envelope too.

A trigger (cron, webhook, subject, http ...) wraps what it carries. With ``unwrap_trigger`` a
handler sees the data, however its run was started; with ``TriggerEnvelope`` it sees who started it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from _server import nats_server
from dagnats_worker import Client, HTTPEnvelope, TriggerEnvelope, Worker

worker = Worker()


@dataclass
class Order:
    number: int


@worker.task("ship", unwrap_trigger=True)
async def ship(order: Order) -> str:
    return f"order {order.number} shipped"


@worker.task("serve")
async def serve(envelope: TriggerEnvelope[HTTPEnvelope]) -> str:
    request = envelope.data
    if request is None:
        return f"{envelope.source} fired without a request"
    return f"{request.method} {request.path} by trigger {envelope.source}"


def fired(trigger: str, data: object) -> dict[str, object]:
    """What the engine hands to the first step of a run that a trigger started."""
    return {
        "trigger": trigger,
        "source": "shop",
        "workflow_id": "orders",
        "timestamp": "2026-01-02T03:04:05Z",
        "data": data,
    }


async def main() -> None:
    inputs = [
        ("ship", {"number": 1}),
        ("ship", fired("webhook", {"number": 2})),
        ("serve", fired("http", {"method": "GET", "path": "/orders/2"})),
    ]
    async with nats_server(), worker, Client() as client:
        for task_type, task_input in inputs:
            run = await client.submit(task_type, task_input)
            print(await run.result(timeout=timedelta(seconds=10)))


if __name__ == "__main__":
    asyncio.run(main())
