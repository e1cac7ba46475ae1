"""Messages that are handed on without nats-py's queue, and the ordinary way beside it.

Method: a real server and real connections; the ordinary way is taken by telling the transport that
this nats-py is built differently.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from support import eventually, unique

from dagnats_worker import Client, EmbeddedServer, Worker, WorkerConfig
from dagnats_worker._jetstream import direct

TASKS = 300
SOON = timedelta(seconds=20)


@pytest.fixture(params=["direct", "ordinary"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a message can come."""
    chosen: str = request.param
    if chosen == "ordinary":
        monkeypatch.setattr(direct, "has_queue", lambda _subscription: False)
    return chosen


async def test_the_installed_nats_py_is_built_as_the_shortcut_expects(nc: NatsClient) -> None:
    subscription = await nc.subscribe(unique("subject"), cb=_nothing)
    assert direct.has_queue(subscription)


async def test_worker_completes_every_task_either_way(
    shared_server: EmbeddedServer, way: str
) -> None:
    task_type = unique(way)
    worker = Worker(shared_server.url, plugins=[], config=WorkerConfig())

    @worker.task(task_type)
    async def double(number: int) -> int:
        return 2 * number

    async with worker, Client(shared_server.url, plugins=[]) as client:
        runs = [await client.submit(task_type, number) for number in range(TASKS)]
        results = await asyncio.gather(*(run.result(SOON) for run in runs))
    assert results == [2 * number for number in range(TASKS)]


async def test_messages_come_in_order_and_one_that_cannot_be_taken_stops_nothing(
    nc: NatsClient, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    subject = unique(way)
    seen: list[bytes] = []

    def take(message: Msg) -> None:
        if message.data == b"3":
            raise ValueError("not this one")
        seen.append(message.data)

    subscription = await direct.subscribe(nc, subject, take)
    with caplog.at_level(logging.ERROR):
        for number in range(10):
            await nc.publish(subject, str(number).encode())
        await nc.flush()
        await eventually(lambda: len(seen) == 9)
    assert seen == [str(number).encode() for number in range(10) if number != 3]
    assert f"a message on {subject} could not be taken" in caplog.text
    await subscription.drain()


async def _nothing(_message: Msg) -> None:
    pass
