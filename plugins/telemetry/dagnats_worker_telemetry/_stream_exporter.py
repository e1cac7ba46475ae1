"""Spans for the engine's console: from the SDK's thread to the loop, and from there to the server.

The SDK's processor exports in a thread of its own, and the connection belongs to the event loop. So
an export only encodes and puts the records into a bounded queue, and never waits for the loop; what
finds no room is lost and counted. Nothing of it can hold a task up, or fail one.

Source: wire protocol, section 9.4.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary

from nats.js.errors import NoStreamResponseError
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_telemetry._records import Record, span_record
from dagnats_worker_telemetry._settings import TelemetrySettings

logger = logging.getLogger("dagnats_worker_telemetry")

QUEUE_MAX = 4096
BATCH_MAX = 64
STORE_WAIT_S = 2.0
RETRY_WAIT_FIRST_S = 1.0
RETRY_WAIT_MAX_S = 60.0

NO_STREAM = (
    "there is no stream TELEMETRY; start the engine, create the streams with `dagnats-worker "
    "setup`, or turn the plugin's setting `stream` off"
)


class TelemetryStream:
    """Publishes records beside the tasks of one worker.

    Args:
        nats: nats-py's client and its JetStream context; None where the worker has none, and then
            every record is lost.
    """

    def __init__(self, nats: Any, jetstream: Any) -> None:
        self._nats = nats
        self._jetstream = jetstream
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Record] = deque()
        self._offering = threading.Lock()
        self._arrived = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._told: set[str] = set()
        self._in_trouble = False
        self.lost = 0

    def offer(self, records: Iterable[Record]) -> None:
        """Take records to be published; for any thread, and never waits."""
        if self._jetstream is None:
            return
        with self._offering:
            for record in records:
                if len(self._queue) < QUEUE_MAX:
                    self._queue.append(record)
                else:
                    self.lost += 1
        self._from_thread(self._arrived.set)

    async def run(self) -> None:
        """Publish what is offered, until it is cancelled."""
        wait_s = RETRY_WAIT_FIRST_S
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if await self.publish():
                wait_s = RETRY_WAIT_FIRST_S
            else:
                self._arrived.set()
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_WAIT_MAX_S)

    async def publish(self) -> bool:
        """Publish what is in the queue now; False once the stream takes nothing."""
        async with self._publishing:
            while self._queue:
                if not self._nats.is_connected:
                    self._tell("disconnected", "there is no connection to the server")
                    self._in_trouble = True
                else:
                    size = min(BATCH_MAX, len(self._queue))
                    await self._store([self._queue.popleft() for _ in range(size)])
                if self._in_trouble:
                    return False
        return True

    def flush(self, within_s: float) -> None:
        """Wait until what was offered is published; for threads other than the loop's."""
        if self._jetstream is None or _is_running_here(self._loop):
            return
        done: Future[None] = Future()

        async def publish() -> None:
            try:
                async with asyncio.timeout(within_s):
                    await self.publish()
            except TimeoutError:
                logger.warning("%d records for TELEMETRY are left behind", len(self._queue))
            finally:
                done.set_result(None)

        tasks: list[asyncio.Task[None]] = []  # the loop holds tasks weakly
        if self._from_thread(lambda: tasks.append(self._loop.create_task(publish()))):
            try:
                done.result(within_s)
            except TimeoutError:
                logger.debug("the event loop has not published within %g s", within_s)

    async def _store(self, batch: Sequence[Record]) -> None:
        """Publish a batch, and wait for the server's answers."""
        answers: list[asyncio.Future[Any]] = []
        failures: list[Exception] = []
        for record in batch:
            headers = {"Nats-Msg-Id": record.message_id}
            try:
                answers.append(
                    await self._jetstream.publish_async(
                        record.subject, record.body, headers=headers
                    )
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, this record is lost and no other
                failures.append(error)
        late: set[asyncio.Future[Any]] = set()
        if answers:
            done, late = await asyncio.wait(answers, timeout=STORE_WAIT_S)
            refused = [one.exception() for one in done]
            failures += [reason for reason in refused if isinstance(reason, Exception)]
        for one in late:
            one.cancel()
            failures.append(TimeoutError(f"no answer within {STORE_WAIT_S:g} s"))
        self._note(len(batch), failures)

    def _note(self, size: int, failures: list[Exception]) -> None:
        self.lost += len(failures)
        for error in failures:
            missing = isinstance(error, NoStreamResponseError)
            self._tell(
                type(error).__name__,
                NO_STREAM if missing else f"{type(error).__name__}: {error}",
            )
        was_in_trouble, self._in_trouble = self._in_trouble, len(failures) == size
        if was_in_trouble and not self._in_trouble:
            self._told.clear()
            logger.info("TELEMETRY stores records again; %d were lost up to now", self.lost)

    def _tell(self, kind: str, reason: str) -> None:
        """Say each kind of trouble once, until it is over."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("nothing shows up in the engine's console: %s", reason)

    def _from_thread(self, call: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed, and the worker with it
            return False
        return True


class StreamSpanExporter(SpanExporter):
    """Exports spans to the engine's stream.

    Use it with a ``BatchSpanProcessor``: encoding is done in the thread that exports.
    """

    def __init__(self, stream: TelemetryStream) -> None:
        self._stream = stream

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Queue the spans."""
        self._stream.offer([span_record(span) for span in spans])
        return SpanExportResult.SUCCESS

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Wait until they are published; the processor says how long."""
        self._stream.flush(timeout_millis / 1000)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until they are published."""
        self._stream.flush(timeout_millis / 1000)
        return True


_streams: WeakKeyDictionary[WorkerFacade, TelemetryStream] = WeakKeyDictionary()


def stream_of(worker: WorkerFacade) -> TelemetryStream:
    """The one stream of a worker; to be called in a hook of the plugin."""
    stream = _streams.get(worker)
    if stream is None:
        try:
            stream = TelemetryStream(worker.nats, worker.jetstream)
        except UsageError:
            logger.warning("nothing shows up in the engine's console: the transport is in memory")
            stream = TelemetryStream(None, None)
        else:
            worker.spawn(stream.run, "telemetry stream")
        _streams[worker] = stream
    return stream


def stream_span_processor(settings: TelemetrySettings, worker: WorkerFacade) -> SpanProcessor:
    """What makes a tracer provider's spans show up in the engine's console."""
    del settings  # there is nothing to set about it
    return BatchSpanProcessor(StreamSpanExporter(stream_of(worker)))


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
