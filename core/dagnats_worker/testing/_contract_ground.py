"""Where the workers of a plugin's contract run: an in-memory server, or a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from dagnats_worker._config import WorkerConfig
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._open import open_transport, provision
from dagnats_worker._protocol import ACK
from dagnats_worker._transport import Transport
from dagnats_worker.testing._server import MemoryServer
from dagnats_worker.testing._transport import MemoryTransport

POLL_S = 0.01


class Ground(Protocol):
    """A server, and what a contract does to it."""

    async def connect(self) -> Transport:
        """A connection of its own."""
        ...

    def lose_next_ack(self) -> None: ...

    def deliver_unacked_again(self) -> None:
        """Where that can be asked for; elsewhere it happens at the end of the lease."""
        ...


class MemoryGround:
    """The in-memory server."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    async def connect(self) -> Transport:
        return MemoryTransport(self._server)

    def lose_next_ack(self) -> None:
        self._server.faults.lose_acks()

    def deliver_unacked_again(self) -> None:
        self._server.faults.redeliver()


class ServerGround:
    """A real nats-server."""

    def __init__(self, url: str, config: WorkerConfig) -> None:
        self._url = url
        self._config = config
        self._loses_next_ack = False

    async def connect(self) -> Transport:
        transport: Any = await open_transport(self._url, self._config, name="contract")
        sends = transport.send

        async def send(subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
            if data == ACK and self._loses_next_ack:
                self._loses_next_ack = False
                return
            await sends(subject, data, headers)

        transport.send = send
        connected: Transport = transport
        return connected

    def lose_next_ack(self) -> None:
        self._loses_next_ack = True

    def deliver_unacked_again(self) -> None:
        pass


def ground(config: WorkerConfig, *, real: bool) -> AbstractAsyncContextManager[Ground]:
    """A server of its own, gone at the end of the block."""
    return _real(config) if real else _in_memory()


@asynccontextmanager
async def _in_memory() -> AsyncIterator[Ground]:
    server = MemoryServer()
    yield MemoryGround(server)
    assert not server.listeners, "a subscription or a watch of a bucket was left open"


@asynccontextmanager
async def _real(config: WorkerConfig) -> AsyncIterator[Ground]:
    async with EmbeddedServer() as server:
        await provisioned(server.url)
        yield ServerGround(server.url, config)


async def provisioned(url: str) -> None:
    """Create every stream and bucket of the protocol on a server."""
    transport: Any = await open_transport(url, WorkerConfig(), name="setup", with_leases=False)
    try:
        await provision(transport.jetstream)
    finally:
        await transport.close()


async def until(
    holds: Callable[[], bool], within_s: float, otherwise: Callable[[], str] | str
) -> None:
    """Wait until something holds, or fail with what is wrong otherwise."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not holds():
        if loop.time() > deadline:
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())
        await asyncio.sleep(POLL_S)
