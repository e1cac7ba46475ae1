"""``dagnats-worker workers``: who is there; ``workers skew``: who runs which versions.

What shows them is imported when it is used, so that ``--help`` is quick.
"""

from __future__ import annotations

import logging

import click

from dagnats_worker.cli import ConnectionOptions, connection_options, run_async

EXIT_SKEW = 1


@click.group(invoke_without_command=True)
@click.option("--watch", is_flag=True, help="Go on, and show what changes.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array; with --watch, JSON lines.")
@connection_options
@click.pass_context
def workers(
    ctx: click.Context, *, watch: bool, as_json: bool, connection: ConnectionOptions
) -> None:
    """List the workers of the fleet, or follow them with --watch.

    A worker is listed while it runs with the plugin `directory`, and so are workers in other
    languages that list themselves in the same bucket. One that dies is gone after a minute.
    """
    from dagnats_worker_directory import _showing  # noqa: PLC0415 - see above

    ctx.obj = connection
    _silence_logs()
    if ctx.invoked_subcommand is None:
        show = _showing.watch_fleet if watch else _showing.show_fleet
        run_async(show(connection, as_json=as_json))
    elif watch or as_json:
        raise click.UsageError(f"options go behind {ctx.invoked_subcommand!r}", ctx)


@workers.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
@click.option("--fail", is_flag=True, help="Exit with 1 where two versions of something run.")
@connection_options
@click.pass_obj
def skew(
    outer: ConnectionOptions, *, as_json: bool, fail: bool, connection: ConnectionOptions
) -> int:
    """Show who runs which versions.

    Of the core, of Python and of each plugin; and of workers in other languages. What fewer workers
    run than another version stands out. Without --fail the exit code is 0.
    """
    from dagnats_worker_directory import _showing  # noqa: PLC0415 - see above

    said = connection.url_given or connection.credentials_given
    is_skewed = run_async(_showing.show_skew(connection if said else outer, as_json=as_json))
    return EXIT_SKEW if fail and is_skewed else 0


def _silence_logs() -> None:
    """The commands say themselves what the library would log."""
    logging.getLogger("dagnats_worker_directory").setLevel(logging.CRITICAL)
