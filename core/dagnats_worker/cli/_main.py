"""The command ``dagnats-worker``: its commands, its errors, its exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from io import TextIOWrapper

import click

from dagnats_worker._http import AddressError
from dagnats_worker.cli._group import TRACEBACK_VARIABLE, LazyCommand
from dagnats_worker.cli._plugin_commands import CommandLine
from dagnats_worker.cli._running import EXIT_INTERRUPTED
from dagnats_worker.errors import DagnatsError

EXIT_FAILED = 1
EXIT_USAGE = 2

SECTIONS = {
    "Start here": {
        "demo": LazyCommand(
            "dagnats_worker.cli._demo:demo", "See it work: a server, a worker and 36 tasks, live."
        ),
        "run": LazyCommand("dagnats_worker.cli._run:run", "Run the worker of a Python module."),
        "server": LazyCommand(
            "dagnats_worker.cli._server:server", "Run a NATS server for development."
        ),
    },
    "Tasks": {
        "submit": LazyCommand("dagnats_worker.cli._submit:submit", "Submit one task."),
        "events": LazyCommand("dagnats_worker.cli._events:events", "Show what happened in a run."),
    },
    "Administration": {
        "dlq": LazyCommand(
            "dagnats_worker.cli._dlq:dlq", "Look at tasks that were given up, and replay them."
        ),
        "setup": LazyCommand(
            "dagnats_worker.cli._setup:setup", "Create the streams and buckets on a server."
        ),
        "doctor": LazyCommand(
            "dagnats_worker.cli._doctor:doctor", "Say what is wrong, and what to do about it."
        ),
        "plugins": LazyCommand(
            "dagnats_worker.cli._plugins:plugins", "Look at plugins, test them, begin a new one."
        ),
    },
}


@click.group(cls=CommandLine, commands_by_section=SECTIONS)
@click.version_option(package_name="dagnats-worker", message="%(prog)s %(version)s")
def cli() -> None:
    """A durable task worker for NATS JetStream."""


def main() -> None:
    """The console script; ends the process with the command's exit code."""
    sys.exit(run_command_line())


def run_command_line() -> int:
    """Run the command of ``sys.argv``, and return its exit code; errors are told on stderr."""
    _accept_any_terminal()
    try:
        return _flushed(cli.main(prog_name="dagnats-worker", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not flush into it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except AddressError as error:
        tell_error(str(error))
        return EXIT_USAGE
    except DagnatsError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error)
        tell_error(str(error))
        return EXIT_FAILED


def _accept_any_terminal() -> None:
    """Print a question mark for what the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def tell_error(message: str) -> None:
    """Say on stderr what went wrong."""
    color = False if os.environ.get("NO_COLOR") else None
    label = click.style("error:", fg="red", bold=True)
    click.echo(f"{label} {message}", err=True, color=color)


def _flushed(code: object) -> int:
    """A command returns an exit code, or nothing for 0; what it printed is known to be out."""
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _usage_error(error: click.ClickException) -> int:
    message = error.format_message().rstrip(".")
    end = "" if message.endswith("?") else "."
    ctx = getattr(error, "ctx", None)
    where = ctx.command_path if ctx is not None else "dagnats-worker"
    tell_error(f"{message}{end} See '{where} --help'")
    return error.exit_code
