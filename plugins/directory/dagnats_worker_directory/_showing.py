"""What the commands show: the fleet, the fleet as it changes, and the versions that it runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from dagnats_worker.cli import ConnectionOptions, connect
from dagnats_worker_directory import _skew
from dagnats_worker_directory._directory import Directory
from dagnats_worker_directory._fleet import fleet, record
from dagnats_worker_directory._registration import WorkerRegistration
from dagnats_worker_directory._table import console_for, plain, tell
from dagnats_worker_directory._watching import follow

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

NOBODY = (
    "no worker is listed\n"
    "  dagnats-worker run MODULE:WORKER  starts one, and the plugin `directory` lists it\n"
    "  dagnats-worker plugins list       shows whether the plugin is used where the worker runs"
)


async def show_fleet(connection: ConnectionOptions, *, as_json: bool) -> None:
    """Who is there."""
    found, unreadable = await _read(connection)
    if as_json:
        _tell_json([record(worker) for worker in found])
    elif found:
        console = console_for()
        tell(console, fleet(found, console))
    else:
        click.echo(NOBODY)
    _warn_of(unreadable)


async def watch_fleet(connection: ConnectionOptions, *, as_json: bool) -> None:
    """Who is there, and what changes, until it is cancelled."""
    async with _opened(connection) as (directory, nc):
        await follow(directory, as_json=as_json, is_connected=lambda: nc.is_connected)


async def show_skew(connection: ConnectionOptions, *, as_json: bool) -> bool:
    """Who runs which versions; returns whether there are two of something."""
    workers, unreadable = await _read(connection)
    found = _skew.versions(workers)
    if as_json:
        _tell_json(_skew.record(found))
    elif found:
        console = console_for()
        tell(console, _skew.skew_lines(found, console))
    else:
        click.echo(NOBODY)
    _warn_of(unreadable)
    return _skew.is_skewed(found)


async def _read(
    connection: ConnectionOptions,
) -> tuple[Sequence[WorkerRegistration], Mapping[str, str]]:
    async with _opened(connection) as (directory, _):
        return await directory.list(), directory.unreadable


def _warn_of(unreadable: Mapping[str, str]) -> None:
    for key, reason in unreadable.items():
        click.echo(f"warning: entry {plain(key)!r} is left out: {plain(reason)}", err=True)


@asynccontextmanager
async def _opened(connection: ConnectionOptions) -> AsyncIterator[tuple[Directory, NatsClient]]:
    async with connect(connection) as nc:
        yield Directory.open(nc.jetstream()), nc


def _tell_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
