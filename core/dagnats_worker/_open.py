"""The way from what a user hands over as a connection to a transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagnats_worker._config import WorkerConfig
from dagnats_worker._transport import Transport, is_transport

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient  # noqa: TID251 - the type of a parameter
    from nats.js import JetStreamContext  # noqa: TID251 - the type of a parameter


async def open_transport(
    connection: str | Sequence[str] | NatsClient | Transport | None,
    config: WorkerConfig,
    *,
    name: str,
    with_leases: bool = True,
) -> Transport:
    """Open a transport; one that was handed over is taken as it is.

    Raises:
        ConnectError: No server, or one that is too old.
    """
    if is_transport(connection):
        return connection
    # nats-py takes a tenth of a second to import, which `--help` and the tests without it save.
    from dagnats_worker._jetstream.transport import connect  # noqa: PLC0415 - see above

    return await connect(connection, config, name=name, with_leases=with_leases)


async def provision(js: JetStreamContext, *, replicas: int = 1) -> list[str]:
    """Create the streams and buckets that the protocol names; what exists is left as it is.

    Args:
        js: ``nats_client.jetstream()``.
        replicas: Copies of each stream and bucket in a cluster.

    Returns:
        What was created.

    Raises:
        TransportError: The server refused; says what to do.
    """
    from dagnats_worker._jetstream.provision import provision as create  # noqa: PLC0415 - as above

    return await create(js, replicas=replicas)
