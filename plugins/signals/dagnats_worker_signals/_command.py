"""``dagnats-worker signal``: somebody's word, from a terminal or a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from dagnats_worker import Client
from dagnats_worker.cli import ConnectionOptions, connection_options, run_async
from dagnats_worker.errors import TransportError
from dagnats_worker.hookspecs import signal_key

STDIN = "-"
FILE = "@"
ENDED = ("completed", "failed", "cancelled")
NOTES = {
    "pending": "run {run} has not begun, as far as is known; the signal waits for it",
    **{word: f"run {{run}} is {word}; nobody may wait for a signal any more" for word in ENDED},
}


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("name", metavar="NAME")
@click.argument("data", metavar="[DATA]", default="null")
@click.option("--raw", is_flag=True, help="DATA is bytes, and not JSON.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def signal(
    run: str, name: str, data: str, *, raw: bool, as_json: bool, connection: ConnectionOptions
) -> int:
    """Send the signal NAME to a run, with JSON as its data; null when not given.

    "@FILE" reads DATA from a file, and "-" from stdin.

    A signal is stored: a step that waits for it later finds it. Sent again, it replaces the
    earlier one.

    \b
    Examples:
      dagnats-worker signal 7f3a approved '{"by": "Ada"}'
      dagnats-worker signal 7f3a scan @scan.pdf --raw
    """
    value = _read(data)
    if not raw:
        _check_json(value, data)
    try:
        signal_key(run, name)  # before anybody is asked about such a run
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    status = run_async(_send(run, name, value, connection))
    if as_json:
        answer = {"run_id": run, "name": name, "bytes": len(value), "run_status": status}
        click.echo(json.dumps(answer))
        return 0
    click.echo(f"sent {name} to {run}")
    if status in NOTES:
        click.echo(NOTES[status].format(run=run), err=True)
    return 0


async def _send(run: str, name: str, value: bytes, connection: ConnectionOptions) -> str:
    """Send it, and say what was known of the run before; empty where nothing could be."""
    async with Client(config=connection.config, plugins=()) as client:
        try:
            status = (await client.status(run)).status
        except TransportError:
            status = ""
        await client.signal(run, name, value)
    return status


def _read(data: str) -> bytes:
    if data == STDIN:
        return sys.stdin.buffer.read()
    if not data.startswith(FILE):
        return data.encode()
    path = Path(data.removeprefix(FILE))
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _check_json(value: bytes, data: str) -> None:
    where = {STDIN: "stdin"}.get(data, data if data.startswith(FILE) else "DATA")
    try:
        json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        hint = "a text needs quotes of its own: '\"yes\"'; for bytes there is --raw"
        raise click.UsageError(f"{where} is not JSON: {error}; {hint}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is a number in JavaScript only")
