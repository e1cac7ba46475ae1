"""A worker beside Go workers: the same durable consumers, and how to see that."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import nats

from dagnats_worker import Worker, WorkerConfig

worker = Worker(config=WorkerConfig(go_ids=True))
eu_worker = Worker(groups=["eu"])


@worker.task("video.encode")
async def encode(frame: int) -> int:
    return frame


@eu_worker.task("mail.send", ack_wait=timedelta(minutes=2))
async def send(address: str) -> None: ...


async def main() -> None:
    async with worker, eu_worker:
        connection = await nats.connect(WorkerConfig().urls)
        jetstream = connection.jetstream()
        for name in ("workers-video-encode", "workers-mail-send-eu"):
            config = (await jetstream.consumer_info("TASK_QUEUES", name)).config
            print(f"{name}: {config.filter_subject}, AckWait {config.ack_wait:g} s")
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
