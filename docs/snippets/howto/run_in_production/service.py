"""A worker as a service: what differs between machines stands in its configuration file."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from dagnats_worker import Worker

worker = Worker(max_tasks=32)


@worker.task("resize", timeout=timedelta(minutes=5), concurrency=8)
async def resize(width: int) -> int:
    await asyncio.sleep(width / 1000)
    return width // 2


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    worker.run()
