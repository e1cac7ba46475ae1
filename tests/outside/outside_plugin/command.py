"""``dagnats-worker outside-ping``."""

from __future__ import annotations

import click

from dagnats_worker.cli import ConnectionOptions, connect, connection_options, run_async


@click.command("outside-ping")
@connection_options
def ping(connection: ConnectionOptions) -> None:
    """Say whether there is a server."""
    run_async(answer(connection))


async def answer(connection: ConnectionOptions) -> None:
    async with connect(connection) as nc:
        click.echo(f"pong from {nc.connected_url.netloc if nc.connected_url else 'nowhere'}")
