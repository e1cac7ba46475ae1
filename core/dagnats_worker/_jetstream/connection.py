"""One connection to NATS: how it is opened, what is known of it, who is told when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client as NatsClient

from dagnats_worker._config import Credentials, WorkerConfig
from dagnats_worker.errors import ConnectError, describe

logger = logging.getLogger("dagnats_worker.connection")

OLDEST_SERVER = (2, 11)
CANCEL_EVERY_S = 0.1

Listener = Callable[[], Awaitable[None]]


class Connection:
    """A nats-py client that was opened here, or handed over by the user."""

    def __init__(
        self, client: NatsClient, config: WorkerConfig, *, owned: bool, quiet: bool = False
    ) -> None:
        self.client = client
        self._refused_max_s = config.refused_max.total_seconds()
        self._refused_since: float | None = None
        self._level = logging.DEBUG if quiet else logging.WARNING
        self.owned = owned
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_lost: list[Listener] = []
        self._on_back: list[Listener] = []
        self._watch: asyncio.Task[None] | None = None
        self._closing = False
        self._complaint = ""

    def listen(self, *, lost: Listener | None = None, back: Listener | None = None) -> None:
        """Be told when the connection is lost, and when it is there again."""
        if lost is not None:
            self._on_lost.append(lost)
        if back is not None:
            self._on_back.append(back)

    async def lost(self) -> None:
        if self._closing:
            return
        if not self.client.is_closed:
            logger.log(self._level, "connection to NATS lost; reconnecting")
        for listener in self._on_lost:
            await listener()

    async def back(self) -> None:
        self._complaint, self._refused_since = "", None
        url = self.client.connected_url
        logger.log(self._level, "connected to NATS again at %s", url.netloc if url else "?")
        for listener in self._on_back:
            await listener()

    def failed(self, error: Exception) -> None:
        """Something goes wrong on a connection that was open; each thing is logged once.

        nats-py tries for ever to get back to a server, even to one that no longer wants it.
        """
        if self._closing:
            return
        text = describe(error)
        if text != self._complaint:
            self._complaint = text
            logger.log(self._level, "NATS: %s", text)
        if not is_refusal(error):
            return
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since >= self._refused_max_s:
            self.ended(f"the server refuses the credentials: {text}")

    def ended(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)

    def watch_handed_over(self, every_s: float) -> None:
        """A client that we did not open tells us nothing, so its counters are looked at."""
        self._watch = asyncio.create_task(self._look(every_s), name="dagnats-worker connection")

    async def _look(self, every_s: float) -> None:
        connected, reconnects = True, self.client.stats["reconnects"]
        while not self.client.is_closed:
            await asyncio.sleep(every_s)
            now_connected = self.client.is_connected
            now_reconnects = self.client.stats["reconnects"]
            if connected and (not now_connected or now_reconnects != reconnects):
                await self.lost()
                connected = False
            if not connected and now_connected:
                await self.back()
                connected = True
            reconnects = now_reconnects
        self.ended("the connection that was handed over has been closed")

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has seen everything that was sent; quiet when it is gone."""
        try:
            await self.client.flush(timeout=max(1, int(timeout_s)))
        except (nats.errors.Error, TimeoutError, OSError, AttributeError) as error:
            # AttributeError: nats-py's flush meets a transport that a reconnect has taken away.
            logger.warning("could not flush the connection: %s", describe(error))

    async def close(self) -> None:
        """Close a connection that was opened here; leave one that was handed over alone."""
        self._closing = True
        self.ended("the connection was closed on this side")
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self.owned and not self.client.is_closed:
            await self._close_client()

    async def _close_client(self) -> None:
        client = self.client
        await _end(client._reconnection_task)  # noqa: SLF001 - nats-py cancels it once, see `_end`
        if not client.is_connected:
            # A server that is gone takes nothing any more, and nats-py 2.16, which would send what
            # is left all the same, then fails before it has ended its own tasks.
            client._pending, client._pending_data_size = [], 0  # noqa: SLF001 - see above
        with contextlib.suppress(OSError):
            await client.close()


def client_options(config: WorkerConfig, urls: list[str], name: str) -> dict[str, Any]:
    """What every connection of a worker is opened with."""
    return {
        "servers": urls,
        "name": name,
        "connect_timeout": 2,
        "reconnect_time_wait": config.reconnect_wait.total_seconds(),
        "max_reconnect_attempts": -1,
        "ping_interval": 10,
        "max_outstanding_pings": 2,
        "pending_size": config.pending_bytes_max,
        "skip_subject_validation": True,  # ours are checked where they are made, once
        **credential_options(config.credentials),
    }


def credential_options(credentials: Credentials) -> dict[str, Any]:
    """nats-py's keywords for what the user configured."""
    options: dict[str, Any] = {}
    if credentials.creds_file is not None:
        options["user_credentials"] = str(credentials.creds_file)
    if credentials.nkey_seed is not None:
        seed = credentials.nkey_seed
        key = "nkeys_seed_str" if seed.startswith("SU") else "nkeys_seed"
        options[key] = seed
    for key in ("user", "password", "token", "tls"):
        value = getattr(credentials, key)
        if value is not None:
            options[key] = value
    return options


class _Opening:
    """What the server says to a connection that is not open yet.

    Attributes:
        is_open: From now on it says that to the connection itself.
        refused: Done with the error when the server will not have us, whoever tries again.
        last_error: Any other error.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.is_open = False
        self.refused: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.last_error: Exception | None = None

    async def on_error(self, error: Exception) -> None:
        self.last_error = error
        if self.is_open:
            self.connection.failed(error)
        elif is_refusal(error) and not self.refused.done():
            self.refused.set_result(error)

    def reason(self, connecting: asyncio.Task[None]) -> BaseException | None:
        """Why it did not work out.

        A refusal says more than what nats-py stumbles over when it closes the refused connection.
        """
        if self.refused.done():
            return self.refused.result()
        if connecting.done() and not connecting.cancelled() and connecting.exception() is not None:
            return connecting.exception()
        return self.last_error


async def open_connection(
    config: WorkerConfig, urls: list[str], name: str, *, quiet: bool = False
) -> Connection:
    """Connect, within ``connect_timeout``.

    Args:
        quiet: Losses and errors are logged for debugging only.

    Raises:
        ConnectError: Says what was tried, what came back, and how to start a server.
    """
    client = NatsClient()
    connection = Connection(client, config, owned=True, quiet=quiet)
    opening = _Opening(connection)

    async def on_closed() -> None:
        last = client.last_error
        connection.ended(f"the server closed the connection for good: {last or 'no reason given'}")

    connecting = asyncio.create_task(
        client.connect(
            **client_options(config, urls, name),
            error_cb=opening.on_error,
            disconnected_cb=connection.lost,
            reconnected_cb=connection.back,
            closed_cb=on_closed,
        )
    )
    timeout_s = config.connect_timeout.total_seconds()
    first: set[asyncio.Future[Any]] = {connecting, opening.refused}
    try:
        await asyncio.wait(first, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _give_up(connecting, client)
        raise
    if connecting.done() and connecting.exception() is None:
        opening.is_open = True
        return connection
    await _give_up(connecting, client)
    raise ConnectError(_no_server(urls, opening.reason(connecting), timeout_s))


async def _end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task of nats-py until it ends; it may swallow a cancellation, and then tries on.

    Source: ``asyncio.wait_for`` of Python 3.11, which nats-py 2.16 connects with.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_EVERY_S)


async def _give_up(opening: asyncio.Task[None], client: NatsClient) -> None:
    await _end(opening)
    if client.is_connecting or client.is_connected or client.is_reconnecting:
        await client.close()


def _no_server(urls: list[str], reason: BaseException | None, timeout_s: float) -> str:
    where = ", ".join(without_secrets(url) for url in urls)
    if reason is not None and is_refusal(reason):
        return (
            f"the NATS server at {where} refused the credentials; check user, token or creds file"
        )
    if isinstance(reason, ImportError):
        return f"these credentials need a package that is missing: pip install '{reason.name}'"
    why = f" ({describe(reason)})" if reason is not None else ""
    return (
        f"no NATS server answered at {where} within {timeout_s:g} s{why}; start one with "
        "`dagnats-worker server`, or name another with --url or NATS_URL"
    )


def is_refusal(error: BaseException) -> bool:
    """Whether the server does not want these credentials; nats-py tells it by a text at times."""
    text = str(error).lower()
    refused = isinstance(error, nats.errors.AuthorizationError)
    return refused or "authorization" in text or "authentication" in text


def without_secrets(url: str) -> str:
    """The URL without user and password, for messages."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def check_server(client: NatsClient) -> None:
    """Refuse a server that lacks what the worker relies on.

    Raises:
        ConnectError: Names both versions.
    """
    version = client.connected_server_version
    found = (version.major, version.minor)
    if found < OLDEST_SERVER:
        raise ConnectError(
            f"nats-server {found[0]}.{found[1]}.{version.patch} is too old: "
            f"{OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer is needed for batched reads of "
            "streams; upgrade it, or `pip install 'dagnats-worker[embedded]'` and use --embedded"
        )
