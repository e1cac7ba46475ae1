"""The embedded server as the command line uses it: provisioned, and where clients look for one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._open import provision
from dagnats_worker.cli._connection import ConnectionOptions, connect
from dagnats_worker.cli._running import run_async

HOST = "127.0.0.1"
DEFAULT_PORT = 4222


@contextmanager
def embedded_server(store: Path | None = None, port: int = 0) -> Iterator[EmbeddedServer]:
    """A server with every stream and bucket of the protocol.

    Raises:
        StartError: There is no nats-server, it is too old, or it cannot start.
    """
    with EmbeddedServer(store, port) as server:
        run_async(provision_server(ConnectionOptions(url=server.url)))
        yield server


async def provision_server(connection: ConnectionOptions, replicas: int = 1) -> list[str]:
    """Create what is missing, and return its names."""
    async with connect(connection) as nc:
        return await provision(nc.jetstream(), replicas=replicas)


def usual_port() -> int:
    """The port where clients look by default; 0, for any other, where something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, DEFAULT_PORT))
        except OSError:
            return 0
    return DEFAULT_PORT


def address_of(url: str) -> str:
    """What another command needs to be told to find this server; nothing for the usual port."""
    return "" if url.endswith(f":{DEFAULT_PORT}") else f" --url {url}"


def store_text(store: Path | None) -> str:
    """Where the server keeps its streams, for people."""
    return str(store) if store is not None else "a temporary folder; --store DIR keeps the streams"
