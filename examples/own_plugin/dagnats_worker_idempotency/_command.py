"""``dagnats-worker idempotency``: what is known of a key."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import click
from dagnats_worker.cli import ConnectionOptions, connect, connection_options, run_async

from dagnats_worker_idempotency._plugin import IdempotencyPlugin
from dagnats_worker_idempotency._store import Record, entries_of

EXIT_NOT_FOUND = 1


@click.group()
def idempotency() -> None:
    """Look at idempotency keys."""


@idempotency.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@connection_options
def show(key: str, *, as_json: bool, connection: ConnectionOptions) -> int:
    """Show who holds KEY, or has held it, and with which result.

    The exit code is 1 where nobody has.
    """
    records = run_async(find(key, connection))
    if as_json:
        click.echo(json.dumps([as_row(record) for record in records]))
    elif not records:
        click.echo(f"nobody has used the key {key!r}", err=True)
    for record in records if not as_json else ():
        row = as_row(record)
        click.echo(f"{row['task_type']}  {row['state']} by {row['task_id']} until {row['until']}")
        if record.done:
            click.echo(record.output.decode())
    return 0 if records else EXIT_NOT_FOUND


async def find(key: str, connection: ConnectionOptions) -> list[Record]:
    """The records of a key that count, one for each task type."""
    # Importing this module, as `--help` of the command does, needs no nats-py.
    from nats.js.errors import NotFoundError

    bucket = IdempotencyPlugin().settings.bucket
    records = []
    async with connect(connection) as nc:
        try:
            kv = await nc.jetstream().key_value(bucket)
        except NotFoundError as error:
            raise click.ClickException(
                f"there is no bucket {bucket!r}; a worker with the plugin makes it"
            ) from error
        watcher = await kv.watch(entries_of(key), ignore_deletes=True)
        async for entry in watcher:
            if entry is None:  # those of before are all seen
                break
            records.append(Record.decode(entry.value or b""))
        await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py
    return [record for record in records if record.until > time.time()]


def as_row(record: Record) -> dict[str, Any]:
    """A record for people and scripts."""
    return {
        "task_type": record.task_type,
        "task_id": record.task_id,
        "state": "done" if record.done else "held",
        "until": datetime.fromtimestamp(record.until, UTC).isoformat(timespec="seconds"),
        "output": json.loads(record.output) if record.output else None,
    }
