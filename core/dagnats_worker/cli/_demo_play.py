"""Playing the demo: a worker and a client on one server, until every task has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from dagnats_worker._client import Client
from dagnats_worker._naming import durable_name
from dagnats_worker._protocol import dead_subject
from dagnats_worker._run import Run, RunEvent
from dagnats_worker.cli._demo_board import Board, Row
from dagnats_worker.cli._demo_tasks import KINDS, demo_worker
from dagnats_worker.errors import DagnatsError, TransportError

logger = logging.getLogger("dagnats_worker.cli")

PLAY_S_MAX = 11.0
"""With the start of a server before it and the drain after it, all is over within 15 seconds."""


class Reporter(Protocol):
    """Shows the demo to somebody."""

    def submitted(self, row: Row) -> None:
        """The task is in its queue."""
        ...

    def event(self, row: Row, event: RunEvent) -> None:
        """The run has a new event, and the row knows it."""
        ...

    def chunk(self, row: Row, chunk: bytes) -> None:
        """The handler has streamed something, and the row knows it."""
        ...


async def play(url: str, prefix: str, board: Board, reporter: Reporter) -> None:
    """Submit every task, follow each to its end, and look for the dead letters.

    Raises:
        ConnectError: No server.
        StartError: Streams are missing there.
    """
    worker = demo_worker(url, prefix)
    async with Client(url) as client:
        try:
            async with worker:
                await _follow_all(client, prefix, board, reporter)
            await _find_dead_letters(client, prefix, board)
        finally:
            if prefix:
                await _delete_consumers(client, prefix)


async def _follow_all(client: Client, prefix: str, board: Board, reporter: Reporter) -> None:
    failed: BaseException | None = None
    try:
        async with asyncio.timeout(PLAY_S_MAX), asyncio.TaskGroup() as following:
            for row in board.interleaved():
                following.create_task(_play_one(client, prefix, row, reporter))
    except* TimeoutError:
        pass  # the board knows what has not ended
    except* (DagnatsError, BrokenPipeError) as errors:
        failed = _first(errors)  # raised in here it would be a group again
    if failed is not None:
        raise failed


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _play_one(client: Client, prefix: str, row: Row, reporter: Reporter) -> None:
    run = await client.submit(
        prefix + row.kind.name,
        row.task_input,
        run_id=row.run_id,
        step_id=row.kind.name,
        stream=row.kind.streams,
    )
    reporter.submitted(row)
    async with asyncio.TaskGroup() as following:
        following.create_task(_follow_events(run, row, reporter))
        if row.kind.streams:
            following.create_task(_follow_stream(run, row, reporter))


async def _follow_events(run: Run, row: Row, reporter: Reporter) -> None:
    async for event in run.events():
        row.take_event(event)
        reporter.event(row, event)


async def _follow_stream(run: Run, row: Row, reporter: Reporter) -> None:
    async for chunk in run.stream():
        if not row.ended:
            row.take_chunk(chunk)
        reporter.chunk(row, chunk)


async def _find_dead_letters(client: Client, prefix: str, board: Board) -> None:
    """Look each up by its subject; the worker has drained, so they are there or never will be."""
    subjects = {
        dead_subject(prefix + row.kind.name, row.run_id, row.kind.name): row.run_id
        for row in board.rows
        if row.state == "failed"
    }
    if not subjects:
        return
    found = await client.transport.newest("DEAD_LETTERS", list(subjects))
    board.dead_letters = {run_id: subject in found for subject, run_id in subjects.items()}


async def _delete_consumers(client: Client, prefix: str) -> None:
    """Leave nothing behind on somebody's server that only this demo would ever use again."""
    for kind in KINDS:
        consumer = durable_name(prefix + kind.name)
        try:
            await client.transport.request(f"$JS.API.CONSUMER.DELETE.TASK_QUEUES.{consumer}", b"")
        except TransportError as error:
            logger.warning("consumer %s stays: %s", consumer, error)


class KeptLogs(logging.Handler):
    """Keeps what is logged, because the screen is in use; tasks that fail are part of the show."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "dagnats_worker.task":
            self.lines.append(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def kept_logs() -> Iterator[KeptLogs]:
    """Keep the log of the worker for as long as the block lasts."""
    logger = logging.getLogger("dagnats_worker")
    kept, propagated = KeptLogs(), logger.propagate
    logger.addHandler(kept)
    logger.propagate = False
    try:
        yield kept
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagated
