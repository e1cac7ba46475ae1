"""A plugin listens to a subject with a plain function.

Method: a plugin in a worker on a real server, to which messages are sent. Fake: the in-memory
server, for which there is nothing to listen to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.client import Client
from plugin_workers import BOUND_S, QUICK
from support import eventually, unique

from dagnats_worker import EmbeddedServer, Plugin, Worker, hookimpl
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker.testing import MemoryTransport


class Listener(Plugin[None]):
    """Notes what is sent to a subject, and cannot bear one text."""

    name = "listener"

    def __init__(self, subject: str) -> None:
        super().__init__()
        self.subject = subject
        self.heard: list[bytes] = []

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        subscription = await worker.listen(self.subject, self.take)
        yield
        await subscription.unsubscribe()

    def take(self, message: Any) -> None:
        if message.data == b"boo":
            raise ValueError("do not shout")
        self.heard.append(message.data)


def worker_with(connection: Any, plugin: Listener) -> Worker:
    worker = Worker(connection, plugins=[plugin], config=QUICK)
    worker.handle("shout", lambda text: None)
    return worker


async def test_messages_are_handed_on_and_an_error_ends_nothing(
    shared_server: EmbeddedServer, nc: Client, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Listener(unique("s"))
    async with worker_with(shared_server.url, plugin):
        for text in (b"one", b"boo", b"two"):
            await nc.publish(plugin.subject, text)
        await eventually(lambda: plugin.heard == [b"one", b"two"], BOUND_S)
    assert "do not shout" in caplog.text


async def test_in_memory_there_is_no_server_to_listen_to() -> None:
    with pytest.raises(Exception, match="use a server"):
        await worker_with(MemoryTransport(), Listener("s")).start()
