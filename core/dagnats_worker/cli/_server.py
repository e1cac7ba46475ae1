"""``dagnats-worker server``: the embedded server alone, for development."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker.cli._embedded import DEFAULT_PORT, address_of, embedded_server, store_text
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._screen import tell_block
from dagnats_worker.errors import TransportError

LOOK_EVERY_S = 0.5
PORT_MAX = 65535


@click.command(cls=Command)
@click.option(
    "--port",
    type=click.IntRange(0, PORT_MAX),
    default=DEFAULT_PORT,
    show_default=True,
    help="On 127.0.0.1; 0 takes a free one.",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the streams are kept; without it they go with the server.",
)
def server(port: int, store: Path | None) -> None:
    """Run a NATS server for development, with all streams and buckets, until Ctrl-C."""
    with embedded_server(store, port) as running:
        url = address_of(running.url)
        rows = [
            ("url", running.url),
            ("store", store_text(store)),
            ("worker", f"dagnats-worker run app:worker{url}"),
            ("task", f"dagnats-worker submit TYPE JSON --wait{url}"),
            ("stop", "Ctrl-C"),
        ]
        tell_block(f"nats-server {running.version}", rows)
        asyncio.run(_until_stopped(running))


async def _until_stopped(server: EmbeddedServer) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set():
        if not server.running:
            raise TransportError(f"the nats-server ended by itself; it said:\n{server.log_tail()}")
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await stop.wait()
        except TimeoutError:
            continue
