"""A run as a client sees it: its events, its stream, its result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dagnats_worker import _json
from dagnats_worker._protocol import (
    STEP_COMPLETED,
    STEP_FAILED,
    WORKFLOW_CANCELLED,
    WORKFLOW_COMPLETED,
    WORKFLOW_FAILED,
    Event,
    decode_event,
    history_subject,
    parse_failure,
    parse_time,
    stream_subject,
)
from dagnats_worker._transport import StoredEvent, Transport
from dagnats_worker.errors import DecodeError, RunCancelledError, TaskFailedError, TransportError

if TYPE_CHECKING:
    from dagnats_worker._client import Client
    from dagnats_worker._status import RunStatus

logger = logging.getLogger("dagnats_worker.client")

READ_AT_ONCE_MAX = 1000
LOOK_AGAIN_FIRST_S = 0.01
READ_AGAIN_AFTER_S = 0.25
WORKFLOW_ENDS = (WORKFLOW_COMPLETED, WORKFLOW_FAILED, WORKFLOW_CANCELLED)

T = TypeVar("T")

EndSubscription = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of a run's history.

    Attributes:
        type: For example ``step.completed``.
        step_id: Empty for an event of the whole run.
        timestamp: When it was published; None where the event does not say.
        payload: The decoded payload; None where there is none.
        attempt: 0 where the event carries none.
        worker_id: Empty where no worker wrote it.
        sequence: Its place in the history stream.
    """

    type: str
    step_id: str
    timestamp: datetime | None
    payload: Any
    attempt: int
    worker_id: str
    sequence: int


class Run:
    """A run that was submitted or started; made by a ``Client``.

    Attributes:
        run_id: The run.
        step_id: The step that was submitted; empty for a run of a workflow.
        duplicate: The run had been submitted before, and was not submitted again. False where that
            is not known: the first attempt to submit it was not answered.
    """

    def __init__(
        self, client: Client, run_id: str, step_id: str = "", *, duplicate: bool = False
    ) -> None:
        self._client = client
        self.run_id = run_id
        self.step_id = step_id
        self.duplicate = duplicate
        self._chunks: asyncio.Queue[bytes] | None = None
        self._end_stream: EndSubscription | None = None

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    async def result(self, timeout: timedelta | None = None) -> Any:
        """Wait for the end of the run.

        Returns:
            What the handler returned; for a run of a workflow, the output of each of its steps.

        Raises:
            TaskFailedError: It failed for good.
            RunCancelledError: It was cancelled.
            TimeoutError: It has not ended in time; it goes on.
            TransportError: The connection has ended for good; one that is lost is waited for.
        """
        seconds = None if timeout is None else timeout.total_seconds()
        async with asyncio.timeout(seconds), aclosing(self.events()) as events:
            async for event in events:
                if event.type == WORKFLOW_CANCELLED:
                    raise RunCancelledError(self.run_id)
                if event.type == STEP_COMPLETED and self._is_own(event.step_id):
                    return event.payload
                if event.type == WORKFLOW_COMPLETED:
                    status = await self._patiently(self._client.transport, self._status)
                    return status.outputs
                if event.type == WORKFLOW_FAILED or (
                    event.type == STEP_FAILED and self._is_own(event.step_id)
                ):
                    raise self._failure(event)
        raise AssertionError("events() goes on until one of these")

    async def events(self, *, follow: bool = True) -> AsyncGenerator[RunEvent, None]:
        """Every event of the run, oldest first, up to the one that ends it.

        While the server is away this waits, and then goes on behind the last event.

        Args:
            follow: Wait for events that are still to come; False for those that are there.
        """
        async with aclosing(self._stored(follow=follow)) as history:
            async for stored in history:
                event = _readable(stored)
                if event is None:
                    continue
                yield public_event(event, stored.sequence)
                if self._is_end(event):
                    return

    async def stream(self) -> AsyncIterator[bytes]:
        """The chunks that the handler streams, until the run ends.

        Nobody stores chunks: those from before this call, or before ``submit(stream=True)``, are
        gone.
        """
        await self.listen()
        chunks = self._chunks
        assert chunks is not None, "listen() makes it"
        ended = asyncio.ensure_future(self._wait_for_end())
        try:
            while not ended.done() or not chunks.empty():
                if chunks.empty():
                    getting = asyncio.ensure_future(chunks.get())
                    await asyncio.wait({getting, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        getting.cancel()
                        continue
                    yield getting.result()
                else:
                    yield chunks.get_nowait()
            ended.result()
        finally:
            ended.cancel()
            await self.close()

    async def listen(self) -> None:
        """Keep what is streamed from now on, for ``stream``."""
        if self._chunks is not None:
            return
        chunks: asyncio.Queue[bytes] = asyncio.Queue(self._client.config.stream_chunks_max)

        def on_chunk(_subject: str, data: bytes, _headers: Mapping[str, str]) -> None:
            if chunks.full():
                logger.warning(
                    "run %s streams faster than it is read; a chunk is lost", self.run_id
                )
            else:
                chunks.put_nowait(data)

        self._chunks = chunks
        subject = stream_subject(self.run_id, self.step_id or ">")
        self._end_stream = await self._client.transport.subscribe(subject, on_chunk)

    async def cancel(self) -> None:
        """Ask for the cancellation of the run. See ``Client.cancel``."""
        await self._client.cancel(self.run_id)

    async def signal(self, name: str, data: Any = None) -> None:
        """Send a signal to the run. See ``Client.signal``."""
        await self._client.signal(self.run_id, name, data)

    async def close(self) -> None:
        """Stop listening to the stream; nothing happens to the run."""
        end, self._end_stream, self._chunks = self._end_stream, None, None
        if end is not None:
            await end()

    async def _wait_for_end(self) -> None:
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass

    async def _stored(self, *, follow: bool) -> AsyncGenerator[StoredEvent, None]:
        """Read the history, and read on whenever something is published there.

        What passes on the plain subject is only a hint to read: a publish that the stream refused
        passes there too.
        """
        transport = self._client.transport
        news = asyncio.Event()

        def on_event(_subject: str, _data: bytes, _headers: Mapping[str, str]) -> None:
            news.set()

        end = await transport.subscribe(history_subject(self.run_id), on_event)
        sequence, wait_s, known = 0, LOOK_AGAIN_FIRST_S, False

        async def read() -> list[StoredEvent]:
            return await transport.history(
                self.run_id, after_sequence=sequence, limit=READ_AT_ONCE_MAX
            )

        try:
            while True:
                news.clear()
                events = await (self._patiently(transport, read, known=known) if follow else read())
                known = True
                for stored in events:
                    sequence = stored.sequence
                    yield stored
                if events:
                    wait_s = LOOK_AGAIN_FIRST_S
                elif not follow:
                    return
                elif await _is_set(news, wait_s):
                    wait_s = LOOK_AGAIN_FIRST_S
                else:
                    wait_s = min(wait_s * 2, self._client.config.follow_poll_every.total_seconds())
        finally:
            await end()

    async def _status(self) -> RunStatus:
        return await self._client.status(self.run_id)

    async def _patiently(
        self, transport: Transport, read: Callable[[], Awaitable[T]], *, known: bool = True
    ) -> T:
        """Read, and read again while the server is away.

        Args:
            known: It has worked before; where it has not, an error of a server that is there is one
                that stays.
        """
        while True:
            try:
                return await read()
            except TransportError as error:
                if not transport.closed.done():
                    if transport.connected and not known:
                        raise
                    logger.debug("run %s: %s; reading it again", self.run_id, error)
                    await asyncio.wait({transport.closed}, timeout=READ_AGAIN_AFTER_S)
                if transport.closed.done():
                    raise TransportError(
                        f"run {self.run_id} is no longer followed: {transport.closed.result()}"
                    ) from error

    def _is_own(self, step_id: str) -> bool:
        return bool(self.step_id) and step_id == self.step_id

    def _is_end(self, event: Event) -> bool:
        if event.type in WORKFLOW_ENDS:
            return True
        return event.type in (STEP_COMPLETED, STEP_FAILED) and self._is_own(event.step_id)

    def _failure(self, event: RunEvent) -> TaskFailedError:
        failure = parse_failure(b"" if event.payload is None else _json.encode(event.payload))
        return TaskFailedError(
            failure.error,
            run_id=self.run_id,
            step_id=event.step_id,
            failure_type=failure.failure_type,
        )


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _readable(stored: StoredEvent) -> Event | None:
    try:
        return decode_event(stored.data)
    except DecodeError as error:
        logger.debug("event %d is not readable: %s", stored.sequence, error)
        return None


def public_event(event: Event, sequence: int) -> RunEvent:
    """An event as users see it."""
    payload = bytes(event.payload)
    return RunEvent(
        type=event.type,
        step_id=event.step_id,
        timestamp=_datetime(event.timestamp),
        payload=_json.decode(payload) if payload else None,
        attempt=event.attempt_number,
        worker_id=event.worker_id,
        sequence=sequence,
    )


def _datetime(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(parse_time(text) / 1e9, UTC)
    except (DecodeError, ValueError):
        return None
