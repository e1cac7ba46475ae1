"""``dagnats-worker submit``: one task, and its output."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import click

from dagnats_worker import _json
from dagnats_worker._client import NO_INPUT, Client
from dagnats_worker._durations import format_duration
from dagnats_worker._run import Run
from dagnats_worker.cli._connection import ConnectionOptions, connection_options
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._main import EXIT_FAILED, tell_error
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import tell
from dagnats_worker.cli._values import duration, header, run_id, token
from dagnats_worker.errors import RunCancelledError, TaskFailedError

NEAR_CHARS_MAX = 20


@dataclass(frozen=True, slots=True)
class Submission:
    """What is to be submitted, and what is wanted back."""

    task_type: str
    task_input: Any
    group: str | None
    run_id: str | None
    headers: dict[str, str]
    wait: bool
    timeout: timedelta | None
    as_json: bool


@click.command(cls=Command)
@click.argument("task_type", metavar="TYPE", type=token("task type"))
@click.argument("task_input", metavar="[JSON]", required=False)
@click.option("--wait", is_flag=True, help="Wait for the end, and print the output.")
@click.option("--timeout", type=duration, metavar="DURATION", help="Wait at most, such as 30s.")
@click.option(
    "--group", type=token("group"), metavar="NAME", help="Only workers of this group take it."
)
@click.option("--run-id", type=run_id, metavar="ID", help="Made up when not given.")
@click.option(
    "--header",
    "headers",
    type=header,
    metavar="NAME=VALUE",
    multiple=True,
    help="Of the task message; can be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def submit(
    task_type: str,
    task_input: str | None,
    *,
    wait: bool,
    timeout: timedelta | None,
    group: str | None,
    run_id: str | None,
    headers: tuple[tuple[str, str], ...],
    as_json: bool,
    connection: ConnectionOptions,
) -> int:
    """Submit one task, with JSON as its input ("-" reads it from stdin).

    Prints the id of the run or, with --wait, the output of the task; then the exit code is 1 where
    the task failed.

    \b
    Examples:
      dagnats-worker submit greet '"Ada"' --wait
      dagnats-worker submit resize '{"width": 64}' --group gpu
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to --wait; give both")
    submission = Submission(
        task_type=task_type,
        task_input=NO_INPUT if task_input is None else _checked_json(task_input),
        group=group,
        run_id=run_id,
        headers=dict(headers),
        wait=wait,
        timeout=timeout,
        as_json=as_json,
    )
    return run_async(_submit(submission, connection))


async def _submit(submission: Submission, connection: ConnectionOptions) -> int:
    async with Client(config=connection.config) as client:
        run = await client.submit(
            submission.task_type,
            submission.task_input,
            run_id=submission.run_id,
            group=submission.group,
            headers=submission.headers,
        )
        if submission.wait:
            return await _wait(run, submission)
    if submission.as_json:
        tell(json.dumps({"run_id": run.run_id, "step_id": run.step_id, "duplicate": run.duplicate}))
        return 0
    tell(run.run_id)
    if run.duplicate:
        tell("this run was submitted before, and not a second time now", err=True)
    elif sys.stdout.isatty():
        tell(f"follow it with: dagnats-worker events {run.run_id} --follow", err=True)
    return 0


async def _wait(run: Run, submission: Submission) -> int:
    answer: dict[str, Any] = {"run_id": run.run_id, "step_id": run.step_id}
    output, message = None, ""
    try:
        output = await run.result(timeout=submission.timeout)
    except TaskFailedError as error:
        answer |= {"status": "failed", "error": str(error), "failure_type": error.failure_type}
        message = f"task {submission.task_type} of run {run.run_id} failed: {error}"
    except RunCancelledError as error:
        answer |= {"status": "cancelled"}
        message = str(error)
    except TimeoutError:
        answer |= {"status": "running"}
        assert submission.timeout is not None, "only a wait with an end times out"
        message = (
            f"run {run.run_id} has not ended within {format_duration(submission.timeout)}; is "
            f"there a worker for {submission.task_type!r}? "
            f"See: dagnats-worker events {run.run_id}"
        )
    else:
        answer |= {"status": "completed", "output": output}
    if submission.as_json:
        tell(_text(answer))
    elif message:
        tell_error(message)
    else:
        tell(_text(output))
    return EXIT_FAILED if message else 0


def _text(value: Any) -> str:
    return _json.encode(value).decode()


def _checked_json(text: str) -> bytes:
    """JSON as it was written, from the command line or from stdin."""
    where = "the input"
    if text == "-":
        where = "stdin"
        data = sys.stdin.buffer.read()
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(
                f"stdin is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
            ) from error
    try:
        json.loads(text, parse_constant=_refuse_constant)
        return text.encode()
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{where} is not JSON: {_where(text, error)}") from error
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{where} is not JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is a number in JavaScript only")


def _where(text: str, error: json.JSONDecodeError) -> str:
    line = f"line {error.lineno}, " if "\n" in text.strip() else ""
    rest = text[error.pos :].split("\n", 1)[0]
    near = f", at {rest[:NEAR_CHARS_MAX]!r}" if rest else ", at the end"
    hint = ""
    if error.pos == 0 and text and not text.startswith(("{", "[", '"')):
        hint = f"; a text needs quotes of its own: '\"{text.strip()[:NEAR_CHARS_MAX]}\"'"
    return f"{error.msg.lower()} ({line}column {error.colno}{near}){hint}"
