"""What the tests of signals share: workers with the plugin, and clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from nats.js import JetStreamContext
from signals_support import Serve
from support import connected
from worker_support import QUICK, serving

from dagnats_worker import Client, EmbeddedServer, Worker
from dagnats_worker_signals import SignalsPlugin, SignalsSettings


@pytest.fixture
def serve(shared_server: EmbeddedServer) -> Serve:
    """A worker with the plugin on the shared server: task type, handler, settings."""

    def start(
        task_type: str, handler: Callable[..., Any], *, url: str = "", **more: Any
    ) -> AbstractAsyncContextManager[Worker]:
        names = {"consume", "parked_max", "sweep_every"} & more.keys()
        settings = SignalsSettings(**{name: more.pop(name) for name in names})
        plugins = [SignalsPlugin(settings)]
        return serving(url or shared_server.url, task_type, handler, plugins=plugins, **more)

    return start


@pytest.fixture
async def client(shared_server: EmbeddedServer) -> AsyncIterator[Client]:
    """A client of the shared server."""
    async with Client(shared_server.url, plugins=(), config=QUICK) as opened:
        yield opened


@pytest.fixture
async def own_js(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    """JetStream on the test's own server."""
    async with connected(nats_server.url) as nc:
        yield nc.jetstream()
