"""The options of ``run`` that make it supervise processes, and the one that serves health."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from dagnats_worker.cli._load import make_folder_importable
from dagnats_worker.cli._reload import Reloader, check_reload
from dagnats_worker.cli._supervise import Plan, Supervisor
from dagnats_worker.cli._values import address, size

F = TypeVar("F", bound=Callable[..., Any])

PROCESSES_MAX = 512
PARAMETERS = ("processes", "max_tasks_per_child", "max_memory_per_child", "reload", "health")


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What the user said about processes and health; None where nothing was said."""

    processes: int | None
    max_tasks_per_child: int | None
    max_memory_per_child: int | None
    reload: bool
    health: str | None

    def __post_init__(self) -> None:
        if self.processes is None:
            for name in ("max_tasks_per_child", "max_memory_per_child"):
                if getattr(self, name) is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise click.UsageError(f"{option} belongs to --processes; give both")
        if self.reload and self.processes is not None:
            raise click.UsageError("--reload runs one process; leave out --processes")
        if self.reload:
            check_reload()
        if self.is_supervised and os.name != "posix":
            raise click.UsageError("--processes and --reload need Linux or macOS")

    @property
    def is_supervised(self) -> bool:
        """The worker runs in other processes than this one."""
        return self.processes is not None or self.reload

    def supervise(self, url: str | None) -> int:
        """Run them, and return the exit code.

        Args:
            url: Of a server that was started for them.

        Raises:
            AddressError: The port for health is taken.
        """
        make_folder_importable()  # for functions that merge the pages of plugins
        plan = Plan(
            processes=self.processes or 1,
            url=url,
            health=self.health,
            max_tasks=self.max_tasks_per_child,
            max_memory_bytes=self.max_memory_per_child,
        )
        supervisor = Reloader(plan) if self.reload else Supervisor(plan)
        with asyncio.Runner() as runner:
            return runner.run(supervisor.run())


def fleet_options(command: F) -> F:
    """Give a command these options, as its argument ``fleet``."""

    @functools.wraps(command)
    def with_fleet(*args: Any, **arguments: Any) -> Any:
        fleet = FleetOptions(**{name: arguments.pop(name) for name in PARAMETERS})
        return command(*args, fleet=fleet, **arguments)

    decorated: Any = with_fleet
    for option in reversed(_options()):
        decorated = option(decorated)
    result: F = decorated
    return result


def _options() -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--processes",
            type=click.IntRange(1, PROCESSES_MAX),
            metavar="N",
            help="Run N processes, and start those again that crash.",
        ),
        click.option(
            "--max-tasks-per-child",
            type=click.IntRange(min=1),
            metavar="N",
            help="Replace a process, with a drain, when it has run so many tasks.",
        ),
        click.option(
            "--max-memory-per-child",
            type=size,
            metavar="SIZE",
            help="The same when it has more memory than this, such as 512MB.",
        ),
        click.option(
            "--reload", is_flag=True, help="Start again when a file of the program has changed."
        ),
        click.option(
            "--health",
            type=address,
            metavar="HOST:PORT",
            help="Serve /livez, /readyz and the pages of plugins there.",
        ),
    ]
