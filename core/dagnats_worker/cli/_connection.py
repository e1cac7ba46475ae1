"""The options with which every command connects."""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from dagnats_worker._config import DEFAULT_URL, URL_VARIABLE, Credentials, WorkerConfig
from dagnats_worker.cli._group import ConnectionOption

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient  # noqa: TID251 - the type of what is handed out

F = TypeVar("F", bound=Callable[..., Any])

CONNECTION_NAME = "dagnats-worker-cli"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NO_CREDENTIALS = Credentials()
PARAMETERS = (
    *("url", "creds", "nkey", "user", "password", "token"),
    *("tls_ca", "tls_cert", "tls_key"),
)


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """What the user said about the server.

    Attributes:
        url: None where nothing was said.
        credentials: Empty where nothing was said.
        url_given: The URL stands on the command line, not in the environment.
        credentials_given: At least one part of the credentials stands on the command line.
    """

    url: str | None = None
    credentials: Credentials = NO_CREDENTIALS
    url_given: bool = False
    credentials_given: bool = False

    @property
    def config(self) -> WorkerConfig:
        """A configuration that says the same."""
        return WorkerConfig(url=self.url, credentials=self.credentials)


def connection_options(command: F) -> F:
    """Give a command the options of the connection, as its argument ``connection``."""

    @functools.wraps(command)
    def with_connection(*args: Any, **arguments: Any) -> Any:
        ctx = click.get_current_context()
        given = {
            name
            for name in PARAMETERS
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        }
        said = {name: arguments.pop(name) for name in PARAMETERS}
        connection = ConnectionOptions(
            url=said["url"],
            credentials=_credentials(said),
            url_given="url" in given,
            credentials_given=bool(given - {"url"}),
        )
        return command(*args, connection=connection, **arguments)

    decorated: Any = with_connection
    for option in reversed(_options()):
        decorated = option(decorated)
    result: F = decorated
    return result


def _options() -> list[Callable[[Any], Any]]:
    return [
        _option("--url", URL_VARIABLE, f"Server; else {DEFAULT_URL}", "URL"),
        _option("--creds", "NATS_CREDS", "Credentials file", "FILE", FILE),
        _option("--nkey", "NATS_NKEY", "File with an nkey seed", "FILE", FILE),
        _option("--user", "NATS_USER", "User name", "NAME"),
        _option("--password", "NATS_PASSWORD", "Better given as a variable", "TEXT"),
        _option("--token", "NATS_TOKEN", "Better given as a variable", "TEXT"),
        _option("--tls-ca", "NATS_CA", "Certificates to check the server by", "FILE", FILE),
        _option("--tls-cert", "NATS_CERT", "Certificate of this client", "FILE", FILE),
        _option("--tls-key", "NATS_KEY", "Key of that certificate", "FILE", FILE),
    ]


def _option(
    name: str, variable: str, text: str, metavar: str, kind: click.Path | None = None
) -> Callable[[Any], Any]:
    return click.option(
        name,
        cls=ConnectionOption,
        envvar=variable,
        help=f"{text}.  [${variable}]",
        metavar=metavar,
        type=kind,
    )


def _credentials(said: dict[str, Any]) -> Credentials:
    nkey: Path | None = said["nkey"]
    if said["user"] is not None and said["password"] is None:
        raise click.UsageError("--user needs a password; give it in NATS_PASSWORD or --password")
    if said["password"] is not None and said["user"] is None:
        raise click.UsageError("--password needs a --user (or NATS_USER)")
    return Credentials(
        creds_file=said["creds"],
        nkey_seed=str(nkey) if nkey is not None else None,
        user=said["user"],
        password=said["password"],
        token=said["token"],
        tls=_tls(said["tls_ca"], said["tls_cert"], said["tls_key"]),
    )


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca is None and cert is None and key is None:
        return None
    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together; give both")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:
        files = ", ".join(str(path) for path in (ca, cert, key) if path is not None)
        raise click.UsageError(f"cannot use the TLS files {files}: {error}") from error
    return context


@asynccontextmanager
async def connect(connection: ConnectionOptions) -> AsyncIterator[NatsClient]:
    """A connected nats-py client, closed at the end of the block.

    Raises:
        ConnectError: No server, or one that is too old; says how to start one.
    """
    from dagnats_worker._jetstream.connection import (  # noqa: PLC0415 - `--help` needs no nats-py
        check_server,
        open_connection,
    )
    from dagnats_worker._jetstream.transport import urls_of  # noqa: PLC0415 - as above

    config = connection.config
    opened = await open_connection(config, urls_of(None, config), CONNECTION_NAME, quiet=True)
    try:
        check_server(opened.client)
        yield opened.client
    finally:
        await opened.close()
