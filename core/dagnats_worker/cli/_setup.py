"""``dagnats-worker setup``: the streams and buckets, on anybody's server."""

from __future__ import annotations

import json

import click

from dagnats_worker.cli._connection import ConnectionOptions, connection_options
from dagnats_worker.cli._embedded import provision_server
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import counted, tell


@click.command(cls=Command)
@click.option(
    "--replicas",
    type=click.Choice((1, 3, 5)),
    default=1,
    show_default=True,
    help="Copies of each stream in a cluster.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def setup(replicas: int, *, as_json: bool, connection: ConnectionOptions) -> None:
    """Create the streams and buckets that workers need, where no engine has done it.

    What exists is never changed, so it can be run again.
    """
    created = run_async(provision_server(connection, replicas))
    # Known only with nats-py, which is imported by now.
    from dagnats_worker._jetstream.provision import RESOURCES  # noqa: PLC0415 - see above

    present = [resource.name for resource in RESOURCES if resource.name not in created]
    if as_json:
        tell(json.dumps({"created": created, "present": present}))
        return
    for name in created:
        tell(f"created  {name}")
    for name in present:
        tell(f"present  {name}")
    tell(f"{counted(len(created), 'resource')} created, {len(present)} there already")
