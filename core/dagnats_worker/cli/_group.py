"""A click group whose commands are imported when they are used, and its help."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

HELP_WIDTH_MAX = 100
TRACEBACK_VARIABLE = "DAGNATS_WORKER_TRACEBACK"


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is known by name only.

    Attributes:
        target: ``module:attribute`` of a ``click.Command``.
        help: One line for the list of commands.
    """

    target: str
    help: str

    def load(self) -> click.Command:
        """Import it."""
        module, _, attribute = self.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class HelpFormatter(click.HelpFormatter):
    """Help with coloured headings and names, where the output is a terminal."""

    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True, fg="green"))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        styled = [(click.style(first, fg="cyan", bold=True), second) for first, second in rows]
        super().write_dl(styled, col_max, col_spacing)


class Context(click.Context):
    """A context whose help is ours; ``NO_COLOR`` is respected."""

    formatter_class = HelpFormatter

    def __init__(self, command: click.Command, *args: Any, **options: Any) -> None:
        options.setdefault("max_content_width", HELP_WIDTH_MAX)
        options.setdefault("help_option_names", ["-h", "--help"])
        if os.environ.get("NO_COLOR"):
            options["color"] = False
        super().__init__(command, *args, **options)


class ConnectionOption(click.Option):
    """An option that every command with a connection has, so that it is listed last."""


class Command(click.Command):
    """A command with our help: its own options first, the connection's in a section of theirs."""

    context_class = Context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Connection": []}
        for parameter in self.get_params(ctx):
            # Newer versions of click give arguments a record too; the usage line has them already.
            is_option = isinstance(parameter, click.Option)
            record = parameter.get_help_record(ctx) if is_option else None
            if record is not None:
                is_connection = isinstance(parameter, ConnectionOption)
                sections["Connection" if is_connection else "Options"].append(record)
        width = max(len(name) for rows in sections.values() for name, _ in rows)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows])


class LazyGroup(click.Group):
    """A group that imports a command only to run it, or to show that command's own help.

    Args:
        commands_by_section: Headings of the help, and under each the commands by name. What plugins
            contribute is a section of its own.
    """

    context_class = Context
    command_class = Command

    def __init__(
        self,
        *args: Any,
        commands_by_section: Mapping[str, Mapping[str, LazyCommand]],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._sections = commands_by_section
        self._lazy = {
            name: command
            for commands in commands_by_section.values()
            for name, command in commands.items()
        }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self._lazy.get(cmd_name)
        return lazy.load() if lazy is not None else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._lazy and not name.startswith("-"):
            close = difflib.get_close_matches(name, self._lazy, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self._lazy)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in self._sections.items():
            with formatter.section(heading):
                width = max(map(len, self._lazy))  # so that all sections are one table
                formatter.write_dl(
                    [(name.ljust(width), command.help) for name, command in commands.items()]
                )
