"""``dagnats-worker dlq``: the tasks that were given up, listed, shown and tried again."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from dagnats_worker._durations import format_duration
from dagnats_worker._letters import DeadLetter
from dagnats_worker.cli._connection import ConnectionOptions, connect, connection_options
from dagnats_worker.cli._group import Command, LazyCommand, LazyGroup
from dagnats_worker.cli._rows import harmless, tell_rows
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import counted, dim, tell, tell_block
from dagnats_worker.cli._values import token

if TYPE_CHECKING:
    from dagnats_worker._jetstream.letters import Letters

LIMIT_DEFAULT = 20
LIMIT_MAX = 100_000
HEADINGS = ("SEQ", "AGE", "TYPE", "RUN", "STEP", "TRIES", "ERROR")
COMMANDS = {
    "Commands": {
        "list": LazyCommand("dagnats_worker.cli._dlq:list_letters", "List the newest ones."),
        "show": LazyCommand("dagnats_worker.cli._dlq:show", "Show one, with the task's input."),
        "replay": LazyCommand(
            "dagnats_worker.cli._dlq_replay:replay",
            "Run one here, publishing nothing; or queue it again.",
        ),
    }
}


@click.group(cls=LazyGroup, commands_by_section=COMMANDS)
def dlq() -> None:
    """Look at dead letters: the tasks that workers and the engine gave up, with the reason."""


@click.command("list", cls=Command)
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(1, LIMIT_MAX),
    default=LIMIT_DEFAULT,
    show_default=True,
    metavar="N",
    help="At most so many, the newest.",
)
@click.option("--type", "task_type", type=token("task type"), metavar="TYPE", help="Only of this.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@connection_options
def list_letters(
    limit: int, *, task_type: str | None, as_json: bool, connection: ConnectionOptions
) -> None:
    """List the newest dead letters, the newest last."""
    letters = run_async(_newest(connection, limit, task_type))
    if as_json:
        for letter in letters:
            tell(json.dumps(record(letter), ensure_ascii=False))
    elif letters:
        tell_rows(HEADINGS, [_row(letter) for letter in letters])
        tell(dim(f"\nlook at one with: dagnats-worker dlq show {letters[-1].sequence}"), err=True)
    else:
        of_type = f" of task type {task_type!r}" if task_type else ""
        tell(f"there are no dead letters{of_type}", err=True)


async def _newest(
    connection: ConnectionOptions, limit: int, task_type: str | None
) -> list[DeadLetter]:
    async with connect(connection) as client:
        return await letters_of(client).newest(limit, task_type)


@click.command(cls=Command)
@click.argument("sequence", metavar="SEQ", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--raw", is_flag=True, help="The body alone, byte for byte.")
@connection_options
def show(sequence: int, *, as_json: bool, raw: bool, connection: ConnectionOptions) -> None:
    """Show one dead letter: what failed, how often it was tried, and its input."""
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other; give one of them")
    letter = run_async(get_letter(connection, sequence))
    assert letter.data is not None, "it was read with its body"
    if raw:
        sys.stdout.buffer.write(letter.data)
        return
    if as_json:
        tell(json.dumps({**record(letter), **_body(letter)}, ensure_ascii=False))
        return
    tell_block(f"dead letter {letter.sequence}", _details(letter))
    tell("")
    body = _body(letter)
    text = body.get("text") or json.dumps(body["task"], indent=2, ensure_ascii=False)
    tell(harmless(text))
    if letter.kind == "task":
        tell(
            dim(
                f"\nrun it here, publishing nothing: "
                f"dagnats-worker dlq replay {letter.sequence} MODULE:WORKER"
            ),
            err=True,
        )


async def get_letter(connection: ConnectionOptions, sequence: int) -> DeadLetter:
    """One letter, with its body."""
    async with connect(connection) as client:
        return await letters_of(client).get(sequence)


def letters_of(client: Any) -> Letters:
    """The stream of dead letters over a connection."""
    from dagnats_worker._jetstream.letters import (  # noqa: PLC0415 - `--help` needs no nats-py
        Letters,
    )

    return Letters(client)


def record(letter: DeadLetter) -> dict[str, Any]:
    """A letter without its body, for scripts."""
    return {
        "sequence": letter.sequence,
        "stored_at": letter.stored_at.isoformat(),
        "kind": letter.kind,
        "task_type": letter.task_type,
        "run_id": letter.run_id,
        "step_id": letter.step_id,
        "error": letter.error,
        "attempts": letter.attempts,
        "deliveries": letter.deliveries,
        "subject": letter.subject,
        "task_subject": letter.task_subject,
    }


def _body(letter: DeadLetter) -> dict[str, Any]:
    """The body as JSON where it is JSON, else as text."""
    assert letter.data is not None, "it was read with its body"
    try:
        return {"task": json.loads(letter.data)}
    except ValueError:
        return {"text": letter.data.decode(errors="backslashreplace")}


def _row(letter: DeadLetter) -> tuple[str, ...]:
    return (
        str(letter.sequence),
        _age(letter.stored_at),
        letter.task_type,
        letter.run_id,
        letter.step_id,
        str(letter.attempts or ""),
        letter.error if letter.kind != "unreadable" else f"unreadable: {letter.error}",
    )


def _details(letter: DeadLetter) -> list[tuple[str, str]]:
    at = letter.stored_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    rows = [
        ("error", letter.error or "not recorded"),
        ("kind", letter.kind),
        ("type", letter.task_type),
        ("run", letter.run_id),
        ("step", letter.step_id),
        ("tries", f"{letter.attempts} (delivered {counted(letter.deliveries, 'time')})"),
        ("given up", f"{at} ({_age(letter.stored_at)} ago)"),
        ("came from", letter.task_subject or "not recorded"),
    ]
    return [(label, harmless(text)) for label, text in rows if text]


def _age(at: datetime) -> str:
    seconds = max(1, int((datetime.now(UTC) - at).total_seconds()))
    return format_duration(timedelta(seconds=seconds))
