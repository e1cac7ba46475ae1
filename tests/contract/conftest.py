"""The seam: each test that takes it runs on the in-memory server and on a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from seams import BreakableSeam, MemorySeam, Seam, ServerSeam
from support import connected

from dagnats_worker import EmbeddedServer, WorkerConfig

CONFIG = WorkerConfig(
    redeliver_after=timedelta(milliseconds=200),
    cancel_poll_every=timedelta(milliseconds=200),
    drain_timeout=timedelta(seconds=5),
    publish_timeout=timedelta(seconds=1),
    request_timeout=timedelta(seconds=1),
    reconnect_wait=timedelta(milliseconds=100),
)


@pytest.fixture(params=["memory", "server"])
def server(request: pytest.FixtureRequest) -> EmbeddedServer | None:
    """The real server, which is shared, so use ``unique()`` names; None for the one in memory."""
    if request.param == "memory":
        return None
    found: EmbeddedServer = request.getfixturevalue("shared_server")
    return found


@pytest.fixture(params=["memory", "server"])
def own_server(request: pytest.FixtureRequest) -> EmbeddedServer | None:
    """A real server of the test's own; None for the one in memory."""
    if request.param == "memory":
        return None
    found: EmbeddedServer = request.getfixturevalue("nats_server")
    return found


@pytest.fixture
async def seam(server: EmbeddedServer | None) -> AsyncIterator[Seam]:
    """One of the two servers, as they are."""
    async with opened(server) as either:
        yield either


@pytest.fixture
async def breakable(own_server: EmbeddedServer | None) -> AsyncIterator[BreakableSeam]:
    """One of the two servers, to be taken away and brought back."""
    async with opened(own_server) as either:
        yield either


@asynccontextmanager
async def opened(server: EmbeddedServer | None) -> AsyncIterator[BreakableSeam]:
    if server is None:
        memory = MemorySeam(CONFIG)
        yield memory
        await memory.close()
        return
    async with connected(server.url) as admin:
        real = ServerSeam(CONFIG, server, admin)
        yield real
        await real.close()
