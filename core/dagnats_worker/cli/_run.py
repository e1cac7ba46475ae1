"""``dagnats-worker run``: the worker of a Python module as a process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from dagnats_worker._config import Credentials, Overrides, install_overrides
from dagnats_worker._durations import format_duration
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._serve import StopRequest, serve
from dagnats_worker._worker import Worker
from dagnats_worker.cli._connection import ConnectionOptions, connection_options
from dagnats_worker.cli._embedded import address_of, embedded_server, store_text, usual_port
from dagnats_worker.cli._fleet import FleetOptions, fleet_options
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._link import Place, taken_place
from dagnats_worker.cli._load import load_worker
from dagnats_worker.cli._logs import LogFormat, configure_logging
from dagnats_worker.cli._screen import counted, listed, tell_block
from dagnats_worker.cli._supervised import supervised
from dagnats_worker.cli._values import duration

logger = logging.getLogger("dagnats_worker.worker")

SHOWN_TYPES_MAX = 12
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


@click.command(cls=Command)
@click.argument("target", metavar="MODULE[:WORKER]")
@click.option("--embedded", is_flag=True, help="Start a NATS server too, for development.")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where that server keeps its streams; without it they go with the server.",
)
@click.option(
    "-o",
    "options",
    metavar="NAME.KEY=VALUE",
    multiple=True,
    help="A setting of a plugin, or of the worker; can be given again.",
)
@click.option("--no-plugins", is_flag=True, help="Load none of the plugins that are installed.")
@click.option("--max-tasks", type=click.IntRange(min=1), metavar="N", help="Handlers at once.")
@click.option(
    "--drain-timeout",
    type=duration,
    metavar="DURATION",
    help="How long handlers may go on after a stop was asked for, such as 30s.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    metavar="LEVEL",
    help=f"{', '.join(LEVELS)}.",
)
@click.option(
    "--log-format", type=click.Choice(FORMATS), metavar="FORMAT", help=f"{', '.join(FORMATS)}."
)
@connection_options
@fleet_options
def run(target: str, **said: Any) -> int:
    """Run the worker of a Python module until Ctrl-C, then drain.

    The current folder is importable. MODULE alone will do where it has one worker. What is said
    here is stronger than what the module says.

    \b
    Exit codes:
      0    drained: every handler has ended by itself
      1    the worker could not start, or could not go on; or its processes crash again and again
      2    the command line cannot be used, or the port of --health is taken
      3    some handlers were cut off when the drain's time was over
      130  a second Ctrl-C cut them off
    """
    options = RunOptions(target=target, **said)
    place = taken_place()
    if place is not None:
        return _run_supervised(options, place)
    with _server(options.store, embedded=options.embedded) as server:
        if options.fleet.is_supervised:
            configure_logging(options.log_level, options.log_format)
            if server is not None:
                logger.info("nats-server %s at %s, embedded", server.version, server.url)
            return options.fleet.supervise(server.url if server is not None else None)
        install_overrides(options.overrides(server.url if server is not None else None))
        full_name, worker = load_worker(options.target)
        if server is None:
            _take_environment(worker, options.connection)
        configure_logging(options.log_level, options.log_format)
        _tell_what_runs(full_name, worker, server, options.store)
        return _serve(worker, StopRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line says."""

    target: str
    embedded: bool
    store: Path | None
    options: tuple[str, ...]
    no_plugins: bool
    max_tasks: int | None
    drain_timeout: timedelta | None
    log_level: str | None
    log_format: LogFormat | None
    connection: ConnectionOptions
    fleet: FleetOptions

    def __post_init__(self) -> None:
        if self.store is not None and not self.embedded:
            raise click.UsageError("--store belongs to --embedded; give both")
        if self.embedded and self.connection.url_given:
            raise click.UsageError(
                "--embedded starts a server, --url names another; give one of them"
            )

    def overrides(
        self, server_url: str | None, *, supervised: bool = False, process: int | None = None
    ) -> Overrides:
        """What is stronger than the code of the module.

        Args:
            server_url: Of the embedded server.
            supervised: Another process has started this one.
            process: Which one of several this is.
        """
        url = self.connection.url if self.connection.url_given else None
        return Overrides(
            url=server_url or url,
            credentials=Credentials() if server_url else _given_credentials(self.connection),
            max_tasks=self.max_tasks,
            drain_timeout=self.drain_timeout,
            health=self.fleet.health,
            options=self.options,
            no_plugins=self.no_plugins,
            supervised=supervised,
            process=process,
        )


def _run_supervised(options: RunOptions, place: Place) -> int:
    """Be one of the processes of a supervisor."""
    request = StopRequest()
    number = place.process if options.fleet.processes is not None else None
    with supervised(place, request) as process:
        install_overrides(options.overrides(place.url, supervised=True, process=number))
        full_name, worker = load_worker(options.target)
        if place.url is None:
            _take_environment(worker, options.connection)
        configure_logging(options.log_level, options.log_format, number)
        if place.shows:
            _tell_what_runs(full_name, worker, None, None, place)
        process.worker = worker
        return _serve(worker, request)


def _serve(worker: Worker, request: StopRequest) -> int:
    code = serve(worker, request)
    _log_what_was_done(worker, code)
    return code


@contextmanager
def _server(store: Path | None, *, embedded: bool) -> Iterator[EmbeddedServer | None]:
    if not embedded:
        yield None
        return
    with embedded_server(store, usual_port()) as server:
        yield server


def _given_credentials(connection: ConnectionOptions) -> Credentials | None:
    return connection.credentials if connection.credentials_given else None


def _take_environment(worker: Worker, connection: ConnectionOptions) -> None:
    """Credentials of the environment are weaker than those of the code."""
    if worker.config.credentials == Credentials():
        worker.config = replace(worker.config, credentials=connection.credentials)


def _tell_what_runs(
    name: str,
    worker: Worker,
    server: EmbeddedServer | None,
    store: Path | None,
    place: Place | None = None,
) -> None:
    types = worker.task_types
    groups = f"  in {', '.join(worker.groups)}" if worker.groups else ""
    drain = format_duration(worker.config.drain_timeout)
    rows = [
        ("serves", listed(types, SHOWN_TYPES_MAX) + groups),
        ("server", _server_of(worker)),
        ("worker", f"{worker.worker_id}, {counted(worker.max_tasks, 'task')} at once"),
        ("stop", f"Ctrl-C; running tasks then have {drain} to end"),
    ]
    if place is not None and place.processes > 1:
        each = f"{counted(worker.max_tasks, 'task')} at once in each"
        rows[2] = ("processes", f"{place.processes}, {each}; the first is {worker.worker_id}")
    if server is not None:
        rows[1] = ("server", f"{server.url}, nats-server {server.version}, embedded")
        rows.insert(2, ("store", store_text(store)))
    embedded = server.url if server is not None else place.url if place is not None else None
    if embedded is not None:
        group = f" --group {worker.groups[0]}" if worker.groups else ""
        submit = f"dagnats-worker submit {types[0]} JSON --wait{group}{address_of(embedded)}"
        rows.insert(-1, ("try", submit))
    tell_block(f"dagnats-worker {version('dagnats-worker')}  {name}", rows, err=True)


def _log_what_was_done(worker: Worker, code: int) -> None:
    if worker.state == "starting":
        return  # told to stop before it began
    stats = worker.stats()
    done = f"{stats.completed} completed, {stats.failed} failed, {stats.retried} to be tried again"
    logger.info("stopped with code %d: %s", code, done)


def _server_of(worker: Worker) -> str:
    from dagnats_worker._jetstream.connection import (  # noqa: PLC0415 - `run --help` needs no nats-py
        without_secrets,
    )

    connection = worker._connection  # noqa: SLF001 - nobody else needs to know it
    if connection is None:
        connection = worker.config.urls.split(",")
    if isinstance(connection, str):
        connection = connection.split(",")
    if not isinstance(connection, Sequence):
        return "a connection that the module has opened"
    return ", ".join(without_secrets(url.strip()) for url in connection)
