"""The root of the command line: the core's own commands, and those that installed plugins bring.

What plugins bring is known from the metadata of their distributions, and imported when it is used.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import click

from dagnats_worker.cli._group import TRACEBACK_VARIABLE, LazyGroup
from dagnats_worker.errors import DagnatsError, PluginError, describe

if TYPE_CHECKING:
    from dagnats_worker._discovery import FoundCommand

HEADING = "From plugins"
PASSED_ON = (
    click.ClickException,
    click.exceptions.Exit,
    click.Abort,
    BrokenPipeError,
    DagnatsError,
)
"""What a command may raise without being broken."""


class CommandLine(LazyGroup):
    """The group ``dagnats-worker``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = super().list_commands(ctx)
        return own + [name for name in commands_by_name() if name not in own]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            warn_of_hidden(cmd_name)
            return own
        found = commands_by_name().get(cmd_name)
        return load_command(found) if found else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self._lazy or name.startswith("-"):
            return super().resolve_command(ctx, args)
        names = self.list_commands(ctx)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return name, self.get_command(ctx, name), args[1:]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PASSED_ON:
            raise
        except Exception as error:
            found = commands_by_name().get(ctx.invoked_subcommand or "", ())
            if ctx.invoked_subcommand in self._lazy or not found:
                raise
            raise _broken(found[0], "failed", error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        rows = [(name, self._from(name, found)) for name, found in commands_by_name().items()]
        if rows:
            width = max(map(len, self.list_commands(ctx)))
            with formatter.section(HEADING):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])

    def _from(self, name: str, found: tuple[FoundCommand, ...]) -> str:
        text = " and ".join(f"{one.distribution} {one.version}" for one in found)
        if name in self._lazy:
            return f"{text}; hidden by the command above with that name"
        return f"{text}; uninstall one of them" if len(found) > 1 else text


def commands_by_name() -> dict[str, tuple[FoundCommand, ...]]:
    """What the installed plugins bring; of two commands with one name, both."""
    # Known only by reading the metadata of everything that is installed.
    from dagnats_worker._discovery import installed_commands  # noqa: PLC0415 - see above

    found: dict[str, tuple[FoundCommand, ...]] = {}
    for one in installed_commands():
        found[one.name] = (*found.get(one.name, ()), one)
    return found


def warn_of_hidden(name: str) -> None:
    """Say that a plugin's command cannot be reached, because the core has one with its name."""
    for one in commands_by_name().get(name, ()):
        click.echo(
            f"warning: the command {name!r} of {one.distribution} {one.version} is not used; the "
            "core has one with that name",
            err=True,
        )


def load_command(found: tuple[FoundCommand, ...]) -> click.Command:
    """Import the command of a plugin.

    Raises:
        PluginError: Two distributions bring it, or it cannot be imported; in one line.
    """
    one = found[0]
    if len(found) > 1:
        both = " and ".join(f"{each.distribution} {each.version}" for each in found)
        raise PluginError(f"{both} both bring a command {one.name!r}; uninstall one of them")
    try:
        command = one.entry.load()
    except (Exception, SystemExit) as error:  # whatever an import does, the user is told of it
        raise _broken(one, "cannot be imported", error) from error
    if not isinstance(command, click.Command):
        raise PluginError(
            f"the command {one.name!r} of {one.distribution} {one.version}: {one.entry.value} is a "
            f"{type(command).__name__}, not a click.Command"
        )
    return command


def _broken(one: FoundCommand, what: str, error: BaseException) -> PluginError:
    text = " ".join(f"{type(error).__name__}: {describe(error)}".split())
    return PluginError(
        f"the command {one.name!r} of {one.distribution} {one.version} {what}: {text}; "
        f"{TRACEBACK_VARIABLE}=1 shows the traceback"
    )
