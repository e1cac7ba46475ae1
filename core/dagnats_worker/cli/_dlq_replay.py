"""``dagnats-worker dlq replay``: a dead letter through a handler, here or in the fleet."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from dagnats_worker._config import Overrides, install_overrides
from dagnats_worker._durations import format_duration
from dagnats_worker._letters import DeadLetter
from dagnats_worker._outcome import Completed, Continued, Failed, Paused, Released
from dagnats_worker._protocol import decode_task, task_subject
from dagnats_worker.cli._connection import ConnectionOptions, connect, connection_options
from dagnats_worker.cli._dlq import get_letter, letters_of
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._load import load_worker
from dagnats_worker.cli._logs import configure_logging
from dagnats_worker.cli._main import EXIT_FAILED, tell_error
from dagnats_worker.cli._running import run_async
from dagnats_worker.cli._screen import tell
from dagnats_worker.cli._values import duration
from dagnats_worker.errors import UsageError

if TYPE_CHECKING:
    from dagnats_worker._worker import Worker
    from dagnats_worker.testing import TaskResult

WITHOUT_END = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it.

    Attributes:
        status: ``completed``, ``continued``, ``failed``, ``paused``, ``released`` or, where nothing
            was run here, ``queued``.
        published: The sequence under which the task is in its queue again; None where it is not.
    """

    sequence: int
    status: str
    output: Any = None
    error: str | None = None
    failure_type: str | None = None
    published: int | None = None


@click.command(cls=Command)
@click.argument("sequence", metavar="SEQ", type=click.IntRange(min=1))
@click.argument("target", metavar="[MODULE:WORKER]", required=False)
@click.option(
    "--publish",
    is_flag=True,
    help="Queue the task again; with a worker, only if it went well here.",
)
@click.option("--timeout", type=duration, metavar="DURATION", help="Give up after, such as 30s.")
@click.option(
    "-o", "options", metavar="NAME.KEY=VALUE", multiple=True, help="A setting, as for run."
)
@click.option("--no-plugins", is_flag=True, help="Load none of the plugins that are installed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def replay(
    sequence: int,
    target: str | None,
    *,
    publish: bool,
    timeout: timedelta | None,
    options: tuple[str, ...],
    no_plugins: bool,
    as_json: bool,
    connection: ConnectionOptions,
) -> int:
    """Run the task of a dead letter here, with its recorded input, and publish nothing.

    The worker of the module runs on a server in memory: its handler, its plugins and its settings
    are the real ones, and what it would publish is only shown. What the handler itself does to the
    world, it does. With --publish the task goes into its queue again, for the fleet to run.

    \b
    Examples:
      dagnats-worker dlq replay 17 app:worker             try it, with a breakpoint if you like
      dagnats-worker dlq replay 17 app:worker --publish   try it, and queue it if it went well
      dagnats-worker dlq replay 17 --publish              queue it

    \b
    Exit codes:
      0  it was completed here, or it was queued
      1  it failed here, or could not be queued
    """
    if target is None and not publish:
        raise click.UsageError("give MODULE:WORKER to run it here, --publish to queue it, or both")
    letter = run_async(get_letter(connection, sequence))
    _check_replayable(letter, publish=publish)
    done = Replayed(sequence, "queued")
    if target is not None:
        install_overrides(Overrides(options=options, no_plugins=no_plugins))
        _, worker = load_worker(target)
        configure_logging("warning", None)
        done = run_async(_run_here(letter, worker, timeout or WITHOUT_END))
    went_well = done.status in ("completed", "continued", "queued")
    if publish and went_well:
        published = run_async(_publish(connection, letter))
        done = Replayed(**{**asdict(done), "published": published})
    _tell(done, letter, publish=publish, as_json=as_json)
    return 0 if went_well else EXIT_FAILED


def _check_replayable(letter: DeadLetter, *, publish: bool) -> None:
    show = f"see: dagnats-worker dlq show {letter.sequence}"
    if letter.kind == "event":
        raise UsageError(
            f"dead letter {letter.sequence} is an event that the engine could not apply, not a "
            f"task; {show}"
        )
    if letter.kind == "unreadable":
        raise UsageError(f"the task of dead letter {letter.sequence} cannot be decoded; {show}")
    if publish and not letter.task_subject:
        raise UsageError(
            f"dead letter {letter.sequence} does not say which queue its task came from; {show}"
        )


async def _run_here(letter: DeadLetter, worker: Worker, timeout: timedelta) -> Replayed:
    from dagnats_worker.testing import WorkerHarness  # noqa: PLC0415 - `--help` needs none of it

    assert letter.data is not None, "it was read with its body"
    task = decode_task(letter.data)
    if letter.task_type not in worker.task_types:
        served = ", ".join(worker.task_types) or "nothing"
        raise UsageError(f"the worker does not serve task type {letter.task_type!r}, but {served}")
    # Where the task once was bound to a worker, or belonged to a group, does not matter here.
    group = worker.groups[0] if worker.groups else None
    subject = task_subject(letter.task_type, task.run_id, group)
    logging.captureWarnings(capture=True)
    async with WorkerHarness(worker) as harness:
        harness.server.publish(subject, letter.data, letter.replay_headers)
        try:
            result = await harness.settled(task.run_id, timeout=timeout)
        except TimeoutError as error:
            raise UsageError(
                f"the handler has not ended within {format_duration(timeout)}"
            ) from error
    return _replayed(letter.sequence, result)


def _replayed(sequence: int, result: TaskResult) -> Replayed:
    failure = result.failure
    if failure is not None and not isinstance(result.outcome, Completed | Continued):
        return Replayed(sequence, "failed", error=failure.error, failure_type=failure.failure_type)
    match result.outcome:
        case Completed():
            return Replayed(sequence, "completed", result.output)
        case Continued():
            return Replayed(sequence, "continued", result.output)
        case Paused(name, length):
            return Replayed(sequence, "paused", error=f"paused as {name!r} for {length}")
        case Released(reason, delay, error):
            text = f"given back ({reason}) for {delay}" + (f": {error}" if error else "")
            return Replayed(sequence, "released", error=text)
        case Failed() | None:
            return Replayed(sequence, "failed", error="nothing was recorded; see the log")


async def _publish(connection: ConnectionOptions, letter: DeadLetter) -> int:
    async with connect(connection) as client:
        return await letters_of(client).replay(letter)


def _tell(done: Replayed, letter: DeadLetter, *, publish: bool, as_json: bool) -> None:
    if as_json:
        tell(json.dumps(asdict(done), ensure_ascii=False))
        return
    if done.error is not None:
        kind = f" ({done.failure_type})" if done.failure_type else ""
        tell_error(
            f"task {letter.task_type} of run {letter.run_id} {done.status}{kind}: {done.error}"
        )
    elif done.status != "queued":
        tell(json.dumps(done.output, ensure_ascii=False))
    if done.published is not None:
        tell(f"queued again as message {done.published} of {letter.task_subject}", err=True)
        tell(f"follow it with: dagnats-worker events {letter.run_id} --follow", err=True)
    elif publish:
        tell("nothing was published", err=True)
