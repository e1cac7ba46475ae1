"""``dagnats-worker doctor``: what is wrong with the server, the worker and the plugins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from dagnats_worker._config import Overrides, install_overrides
from dagnats_worker.cli._connection import (
    NO_CREDENTIALS,
    ConnectionOptions,
    connect,
    connection_options,
)
from dagnats_worker.cli._doctor_checks import Finding, Level, Served, findings
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._load import load_worker
from dagnats_worker.cli._plugins_doctor import all_problems
from dagnats_worker.cli._plugins_list import options_option
from dagnats_worker.cli._plugins_look import look
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import counted, tell
from dagnats_worker.errors import DagnatsError, StartError, describe

if TYPE_CHECKING:
    from dagnats_worker._survey import Survey
    from dagnats_worker._worker import Worker

EXIT_WARNINGS = 1
EXIT_STOPS = 2
LABELS = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "stops": ("stops  ", "red")}
INDENT = " " * 9


@click.command(cls=Command)
@click.argument("target", metavar="[MODULE:WORKER]", required=False)
@options_option
@click.option("--quiet", "-q", is_flag=True, help="Only what is wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def doctor(
    target: str | None,
    *,
    options: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    connection: ConnectionOptions,
) -> int:
    """Look at the server and the plugins, and say what is wrong and what to do about it.

    With MODULE:WORKER also what that worker would meet when it starts. Nothing is changed.

    \b
    Exit codes:
      0  nothing is wrong
      1  workers start, but something needs attention
      2  a worker does not start like this
    """
    all_found = [
        *_worker_and_server(target, options, connection),
        *(
            Finding(
                "stops" if problem.stops else "warning",
                "plugin",
                f"{problem.plugin}: {problem.what}" if problem.plugin else problem.what,
                problem.remedy,
            )
            for problem in all_problems(look(options))
        ),
    ]
    code = exit_code(all_found)
    if as_json:
        tell(json.dumps({"code": code, "findings": [asdict(one) for one in all_found]}))
        return code
    _tell(all_found, code, quiet=quiet)
    return code


def exit_code(found: Sequence[Finding]) -> int:
    """0, or what the worst finding is worth."""
    levels = {one.level for one in found}
    if "stops" in levels:
        return EXIT_STOPS
    return EXIT_WARNINGS if "warning" in levels else 0


def _worker_and_server(
    target: str | None, options: tuple[str, ...], connection: ConnectionOptions
) -> Iterator[Finding]:
    served: list[Served] = []
    if target is not None:
        install_overrides(Overrides(options=options))
        try:
            name, worker = load_worker(target)
            served = list(_served(worker))
        except DagnatsError as error:
            what, _, remedy = describe(error).partition("; ")
            yield Finding("stops", "worker", what, remedy or "correct the module")
        else:
            types = ", ".join(worker.task_types) or "nothing"
            level: Level = "ok" if worker.task_types else "stops"
            remedy = "" if worker.task_types else "register a handler with @worker.task(...)"
            yield Finding(level, "worker", f"{name} serves {types}", remedy)
            connection = _of_worker(worker, connection)
    try:
        found = run_async(_survey(connection))
    except DagnatsError as error:
        what, _, remedy = describe(error).partition("; ")
        yield Finding("stops", "server", what, remedy)
        return
    yield from findings(found, served)


def _served(worker: Worker) -> Iterator[Served]:
    """What the worker would take from durables of its own.

    Raises:
        StartError: Two of its task types cannot live side by side.
    """
    registry = worker._registry  # noqa: SLF001 - nobody else needs to know it
    try:
        registry.check_names(worker.groups)
    except StartError as error:
        raise StartError(f"names collide: {error}") from error
    if worker.partitions:
        return  # those are not durables, and a plugin knows them
    for registration in registry.all:
        for group in worker.groups or (None,):
            yield Served(registration.task_type, group, registration.ack_wait)


def _of_worker(worker: Worker, connection: ConnectionOptions) -> ConnectionOptions:
    """The connection that the worker would open, where the command line names no other."""
    own = worker._connection  # noqa: SLF001 - nobody else needs to know it
    urls = own or worker.config.urls
    if connection.url_given or not isinstance(urls, str | list | tuple):
        return connection
    credentials = worker.config.credentials
    if connection.credentials_given or credentials == NO_CREDENTIALS:
        credentials = connection.credentials  # those of the environment, too, as for `run`
    url = urls if isinstance(urls, str) else ",".join(urls)
    return replace(connection, url=url, credentials=credentials)


async def _survey(connection: ConnectionOptions) -> Survey:
    from dagnats_worker._jetstream.survey import (  # noqa: PLC0415 - `--help` needs no nats-py
        survey,
    )

    async with connect(connection) as client:
        return await survey(client)


def _tell(found: Sequence[Finding], code: int, *, quiet: bool) -> None:
    for one in found:
        if quiet and one.level == "ok":
            continue
        label, color = LABELS[one.level]
        tell(f"{click.style(label, fg=color)}  {one.area}: {one.what}")
        if one.remedy:
            tell(INDENT + one.remedy)
    wrong = [one for one in found if one.level != "ok"]
    if not wrong:
        tell("nothing is wrong")
        return
    end = "no worker starts like this" if code == EXIT_STOPS else "workers start"
    tell(f"{counted(len(wrong), 'problem')}; {end}")
