"""What lets each example run by itself: a NATS server, where you have none."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats

from dagnats_worker import EmbeddedServer, provision


@asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """The server of ``NATS_URL``; where that is not set, one that lasts as long as the block.

    ``Worker()`` and ``Client()`` find it in ``NATS_URL``.
    """
    if url := os.environ.get("NATS_URL"):
        yield url
        return
    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        await connection.close()
        os.environ["NATS_URL"] = server.url
        try:
            yield server.url
        finally:
            del os.environ["NATS_URL"]
