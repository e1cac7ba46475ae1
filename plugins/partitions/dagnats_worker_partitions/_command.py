"""``dagnats-worker groups``: who has which partition, and what to do about members that are dead.

Nothing here imports nats-py before a command is used, so ``--help`` is quick.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dagnats_worker.cli import ConnectionOptions, connect, connection_options, run_async
from dagnats_worker_partitions import _groups, _look, _reap, _table
from dagnats_worker_partitions._errors import GroupError, GroupNotFoundError
from dagnats_worker_partitions._names import TASK_STREAM

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

EXIT_FAILED = 1
CLOSE = 0.8


def stream_option(command: F) -> F:
    """Give a command its ``--stream``."""
    decorated: F = click.option(
        "--stream", default=TASK_STREAM, show_default=True, help="The stream that is divided."
    )(command)
    return decorated


def yes_option(command: F) -> F:
    """Give a command its ``--yes``."""
    decorated: F = click.option("--yes", is_flag=True, help="Do not ask.")(command)
    return decorated


@click.group()
def groups() -> None:
    """Look at partitioned consumer groups, and mend them."""


@groups.command("list", short_help="List the groups, and what nobody reads.")
@click.option("--stream", default=None, help="Only groups of this stream.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@connection_options
def list_(stream: str | None, *, as_json: bool, connection: ConnectionOptions) -> int:
    """List the groups, with the partitions that nobody reads."""
    found, broken = run_async(_listed(connection, stream))
    if as_json:
        rows = [_table.as_json(one) for one in found]
        click.echo(json.dumps([*rows, *broken]))
    elif found:
        rows_shown = [_table.list_row(one) for one in found]
        for line in _table.columns(_table.LIST_HEADER, rows_shown, _table.LIST_NUMBERS):
            _table.tell(line)
    elif not broken:
        of = f" of stream {stream}" if stream else ""
        click.echo(f"no groups{of}; a worker with partitions makes one at its start", err=True)
    for one in broken if not as_json else ():
        click.echo(f"{one['group']} on {one['stream']}: {one['error']}", err=True)
    return EXIT_FAILED if broken else 0


async def _listed(
    connection: ConnectionOptions, stream: str | None
) -> tuple[list[_look.GroupInfo], list[dict[str, str]]]:
    """The groups, and those whose records cannot be read."""
    found, broken = [], []
    async with connect(connection) as nc:
        for of, group in await _groups.list_groups(nc, stream):
            try:
                found.append(await _look.group_info(nc, of, group))
            except GroupNotFoundError:
                continue  # deleted since it was listed
            except GroupError as error:
                broken.append({"stream": of, "group": group, "error": str(error)})
    return found, broken


@groups.command(short_help="Show who has which partition.")
@click.argument("group")
@stream_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def show(group: str, *, stream: str, as_json: bool, connection: ConnectionOptions) -> None:
    """Show which member of GROUP has which partition, and what waits there.

    MESSAGES are those in a partition, with those that are being handled. PENDING and UNACKED are of
    a member: not given to it yet, and given but not acked.
    """
    info = _run(connection, stream, group, lambda nc: _look.group_info(nc, stream, group))
    if as_json:
        click.echo(json.dumps(_table.as_json(info)))
        return
    _table.tell("\n".join(_table.group_lines(info)))


@groups.command("step-down")
@click.argument("group")
@click.argument("member")
@stream_option
@connection_options
def step_down(group: str, member: str, *, stream: str, connection: ConnectionOptions) -> None:
    """Let another process of MEMBER be served.

    Only of use where several processes share one member name. The partitions stay with the member.
    """
    _run(connection, stream, group, lambda nc: _groups.step_down(nc, stream, group, member))
    click.echo(f"{member} stepped down; the next process of it that asks is served")


@groups.command(short_help="Take dead members out of a group.")
@click.argument("group")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@stream_option
@yes_option
@connection_options
def drop(
    group: str, members: tuple[str, ...], *, stream: str, yes: bool, connection: ConnectionOptions
) -> None:
    """Take dead members out of GROUP; their partitions go to the others.

    A member that is alive hands over what it has. In Python it comes back by itself; in Go it waits
    until it is started again.
    """
    names = ", ".join(members)
    _confirm(f"drop {names} from group {group} on {stream}?", yes=yes)
    _run(connection, stream, group, lambda nc: _drop(nc, stream, group, members))
    click.echo(f"dropped {names} from {group}")


async def _drop(nc: NatsClient, stream: str, group: str, members: tuple[str, ...]) -> None:
    listed = [one.name for one in await _look.members_info(nc, stream, group) if one.listed]
    if strange := [name for name in members if name not in listed]:
        raise GroupError(
            f"group {group!r} on stream {stream!r} has no member {strange[0]!r}; "
            f"its members are {', '.join(listed) or 'none'}"
        )
    await _groups.drop_members(nc, stream, group, members)


@groups.command(short_help="Delete a group and its stream.")
@click.argument("group")
@stream_option
@click.option("--force", is_flag=True, help="Also where messages are lost with it.")
@yes_option
@connection_options
def delete(
    group: str, *, stream: str, force: bool, yes: bool, connection: ConnectionOptions
) -> None:
    """Delete GROUP and its stream; workers that are members stop taking its tasks.

    Messages in the stream of the group have left the stream that it divides, and are lost. Where
    there are any, --force is needed.
    """
    _confirm(f"delete group {group} on {stream}?", yes=yes)
    lost = _run(
        connection, stream, group, lambda nc: _groups.delete_group(nc, stream, group, force=force)
    )
    click.echo(f"deleted {group}" + (f", and {lost} messages with it" if lost else ""))


@groups.command("reap", short_help="Find dead members, and drop them.")
@click.argument("group")
@stream_option
@yes_option
@connection_options
def reap_(group: str, *, stream: str, yes: bool, connection: ConnectionOptions) -> None:
    """Find out which members of GROUP are dead, and drop them.

    That takes at least twelve seconds. Where a worker with this plugin is a member it does the same
    by itself.
    """
    _askable(yes=yes)
    click.echo("looking for signs of life; this takes a while", err=True)
    found = _run(connection, stream, group, lambda nc: _reap.find_dead(nc, stream, group))
    for name in sorted(found.doubtful):
        click.echo(f"{name} is listed as a worker, and does not read; look again in a minute")
    for name, silent_s in sorted(found.dead.items()):
        click.echo(f"{name} is dead: nobody has read its partitions for {silent_s:.0f} s")
    if not found.dead:
        click.echo(f"no member of {group} was found dead")
        return
    names = sorted(found.dead)
    _confirm(f"drop {', '.join(names)} from group {group} on {stream}?", yes=yes)
    dropped = _run(connection, stream, group, lambda nc: _reap.drop_dead(nc, stream, group, names))
    for name in names:
        told = "dropped" if name in dropped else "left, because it has come back:"
        click.echo(f"{told} {name}")


# ------------------------------------------------------------------- what the commands share


def _confirm(question: str, *, yes: bool) -> None:
    """Ask before something is done that cannot be undone."""
    _askable(yes=yes)
    if not yes and not click.confirm(question):
        raise click.exceptions.Exit(EXIT_FAILED)


def _askable(*, yes: bool) -> None:
    """Refuse, before anything is done, where a question would get no answer."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is nobody to ask; say --yes", click.get_current_context())


def _run(
    connection: ConnectionOptions,
    stream: str,
    group: str,
    do: Callable[[NatsClient], Awaitable[T]],
) -> T:
    """Connect and do something with a group; one that is misspelt is told from one that is not."""
    return run_async(_connected(connection, stream, group, do))


async def _connected(
    connection: ConnectionOptions,
    stream: str,
    group: str,
    do: Callable[[NatsClient], Awaitable[T]],
) -> T:
    async with connect(connection) as nc:
        try:
            return await do(nc)
        except GroupNotFoundError as error:
            known = await _groups.list_groups(nc)
            if (stream, group) in known:
                raise
            raise GroupNotFoundError(_hinted(stream, group, known)) from error


def _hinted(stream: str, group: str, known: list[tuple[str, str]]) -> str:
    text = f"there is no group {group!r} on stream {stream!r}"
    elsewhere = [of for of, name in known if name == group]
    if elsewhere:
        return f"{text}; there is one on {elsewhere[0]}: say --stream {elsewhere[0]}"
    names = [name for of, name in known if of == stream]
    ours = f"workers-{group}"  # somebody has said the task type
    close = [ours] if ours in names else difflib.get_close_matches(group, names, n=1, cutoff=CLOSE)
    if close:
        return f"{text}; did you mean {close[0]!r}?"
    return f"{text}; `dagnats-worker groups list` shows those that there are"
