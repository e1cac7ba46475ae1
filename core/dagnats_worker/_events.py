"""From outcomes to events in the history of the run, to stream chunks and to dead letters."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from weakref import WeakValueDictionary

import msgspec

from dagnats_worker._config import WorkerConfig
from dagnats_worker._counters import Counters
from dagnats_worker._execution import Execution
from dagnats_worker._hook_calls import VITAL, walk
from dagnats_worker._kept import message_name
from dagnats_worker._message_headers import sendable
from dagnats_worker._outcome import Completed, Continued, Failed, Outcome, Paused, Released
from dagnats_worker._plugins import Hooks
from dagnats_worker._protocol import (
    ABSENT,
    ERROR_TEXT_BYTES_MAX,
    HEADER_MSG_ID,
    IN_PROGRESS,
    STEP_COMPLETED,
    STEP_CONTINUE,
    STEP_FAILED,
    STEP_RELEASED,
    STEP_STARTED,
    Event,
    clean_text,
    continue_id,
    decode_event,
    deliveries_of,
    encode_event,
    encode_task,
    event_id,
    failure_payload,
    go_event_id,
    history_subject,
    next_iteration_id,
    stream_subject,
    time_text,
)
from dagnats_worker._retry import retry_nats
from dagnats_worker._transport import Stored, StoredEvent, Transport, message_size
from dagnats_worker.errors import DecodeError, PublishError, SupersededError
from dagnats_worker.hookspecs import Message

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
WRONG_LAST_SEQUENCE = (10071, 10164)
FENCE_ATTEMPTS_MAX = 200

RESOLUTIONS = (STEP_COMPLETED, STEP_FAILED, STEP_CONTINUE)


class Sending:
    """A message that is on its way to its stream.

    Attributes:
        fence: What the history's newest sequence has to be where it is sent again, because the
            first time may have been stored longer ago than the stream remembers ids; 0 for any.
        resent: It was sent more than once.
    """

    __slots__ = ("data", "fence", "future", "headers", "resent", "subject")

    def __init__(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        future: asyncio.Future[Stored],
        fence: int = 0,
    ) -> None:
        self.subject = subject
        self.data = data
        self.headers = headers
        self.future = future
        self.fence = fence
        self.resent = False


class Events:
    """Publishes what a task does; every method but ``started`` returns once it is stored."""

    def __init__(
        self,
        transport: Transport,
        hooks: Hooks,
        config: WorkerConfig,
        counters: Counters,
        worker_id: str,
    ) -> None:
        self._transport = transport
        self._hooks = hooks
        self._config = config
        self._counters = counters
        self._worker_id = worker_id
        self._fences: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def started(self, execution: Execution) -> None:
        """Send ``step.started``; stored only when ``confirm_start`` says so."""
        event = self._event(execution, STEP_STARTED, ABSENT)
        event.attempt_number = execution.attempt
        message_id = self._id(execution, STEP_STARTED)
        first = 0 if execution.opens_run else None
        execution.started = await self._send(execution, event, message_id, first)
        again = execution.delivery.deliveries > 1  # it may kill its worker, and that is to count
        if again or self._config.confirm_start or execution.inflight.source.fenced:
            await self.confirm_started(execution)
        else:
            # In this turn of the loop the start goes out, so a handler that kills the process at
            # once has been started all the same.
            await asyncio.sleep(0)

    async def confirm_started(self, execution: Execution) -> None:
        """Wait until ``step.started`` is stored, sending it again where it was not."""
        sending = execution.started
        if sending is None or execution.started_sequence:
            return
        try:
            stored = await self._stored(sending)
        except PublishError as error:
            if not execution.opens_run or error.code not in WRONG_LAST_SEQUENCE:
                raise
            execution.opens_run = False  # somebody was faster; who has the task is seen at its end
            del sending.headers[EXPECTED_SEQUENCE]
            stored = await self.store(sending.subject, sending.data, sending.headers)
        if stored.duplicate and not sending.resent:
            # An older start holds the id within the dedup window, and ours is not there.
            sending.headers[HEADER_MSG_ID] += _distinct()
            stored = await self.store(sending.subject, sending.data, sending.headers)
        execution.started_sequence = stored.sequence

    async def resolved(self, execution: Execution, outcome: Outcome) -> None:
        """Publish an outcome.

        Raises:
            TransportError: It is not stored.
            SupersededError: It must not be stored any more.
        """
        event, message_id = self._outcome_event(execution, outcome)
        if not execution.fenced:
            await self._resolve(execution, event, message_id, 0)
            return
        run_id = execution.task.run_id
        # Outcomes of one run break each other's fences, so they do not even try at the same time.
        async with self._fences.setdefault(run_id, asyncio.Lock()):
            if execution.shared and not execution.opens_run:
                # Our start may have been stored late, after what somebody else has done meanwhile.
                newest = await self._newer(execution, message_id, execution.seen_sequence)
                if newest is None:
                    return
            await self._resolve(execution, event, message_id, execution.started_sequence)

    async def _resolve(
        self, execution: Execution, event: Event, message_id: str, expected: int
    ) -> None:
        seen = execution.started_sequence
        for _ in range(FENCE_ATTEMPTS_MAX):
            duplicate = False
            try:
                sending = await self._send(execution, event, message_id, expected or None)
                duplicate = (await self._stored(sending)).duplicate
            except PublishError as error:
                if error.code not in WRONG_LAST_SEQUENCE:
                    raise
            else:
                if not duplicate:
                    return
            newest = await self._newer(execution, message_id, seen)
            if newest is None:
                return
            seen = newest
            if duplicate:  # an older outcome holds the id within the dedup window, by accident
                message_id += _distinct()
            else:
                expected = seen
        raise PublishError(f"{event.type} of {execution.task.task_id}: its history never rests")

    async def next_iteration(self, execution: Execution) -> None:
        """Dispatch the next turn of an agent loop, which nobody else does without an engine."""
        task = msgspec.structs.replace(execution.task, iteration=execution.task.iteration + 1)
        subject = execution.delivery.subject
        headers = await self.announce(execution, subject, execution.trace_headers())
        headers[HEADER_MSG_ID] = next_iteration_id(task.run_id, task.step_id, task.iteration)
        await self.store(subject, encode_task(task), headers)

    async def store(self, subject: str, data: bytes, headers: dict[str, str]) -> Stored:
        """Store any message, sending it again where NATS failed."""
        future = await self._transport.publish(subject, data, headers)
        return await self._stored(Sending(subject, data, headers, future))

    def fits(self, data: bytes, headers: dict[str, str]) -> bool:
        """Whether the server takes a message of that size."""
        return message_size(data, headers) <= self._transport.max_payload

    async def chunk(self, execution: Execution, data: bytes) -> None:
        """Send one chunk of a stream to whoever listens."""
        task = execution.task
        subject = stream_subject(task.run_id, task.step_id)
        headers = await self.announce(execution, subject, execution.trace_headers())
        await self._transport.send(subject, data, headers or None)

    async def announce(
        self, execution: Execution, subject: str, headers: dict[str, str]
    ) -> dict[str, str]:
        """Let plugins change the headers of a message that is no event; returns those to be sent.

        It may be sent from any task, as a handler sends chunks, and not in the walk alone.

        Raises:
            PluginError: A required plugin failed; the message is not to be sent.
        """
        implementations = self._hooks.pre_publish
        if not implementations:
            return headers
        message = Message(subject, headers)
        await self._hooks.require(implementations, ctx=execution.context, message=message)
        return sendable(message.headers, implementations)

    async def heartbeat(self, execution: Execution) -> None:
        """Renew the lease now."""
        await self._transport.send(execution.inflight.ack_subject, IN_PROGRESS)

    # ------------------------------------------------------------------ what an event says

    def _outcome_event(self, execution: Execution, outcome: Outcome) -> tuple[Event, str]:
        match outcome:
            case Completed(output):
                return self._step_event(execution, STEP_COMPLETED, output)
            case Failed(error, failure_type, retry_after):
                payload = failure_payload(error, failure_type, retry_after)
                return self._step_event(execution, STEP_FAILED, payload)
            case Continued(output):
                event = self._event(execution, STEP_CONTINUE, msgspec.Raw(output))
                event.worker_id = ""
                task = execution.task
                nonce_ns = time.time_ns()
                return event, continue_id(task.run_id, task.step_id, task.iteration, nonce_ns)
            case Released(reason, delay, error, kept):
                message = message_name(execution.delivery) if kept else ""
                payload = released_payload(reason, delay, error, kept=message)
                return self._step_event(execution, STEP_RELEASED, payload)
            case Paused(_, duration):
                return self._step_event(
                    execution, STEP_RELEASED, released_payload("pause", duration)
                )

    def _step_event(self, execution: Execution, kind: str, payload: bytes) -> tuple[Event, str]:
        event = self._event(execution, kind, msgspec.Raw(payload))
        event.attempt_number = execution.task.attempt if self._config.go_ids else execution.attempt
        return event, self._id(execution, kind)

    def _event(self, execution: Execution, kind: str, payload: msgspec.Raw) -> Event:
        task = execution.task
        timestamp = time_text(time.time_ns())
        event = Event(kind, task.run_id, task.step_id, timestamp, payload)
        event.worker_id = self._worker_id
        return event

    def _id(self, execution: Execution, kind: str) -> str:
        task = execution.task
        if self._config.go_ids and kind != STEP_RELEASED:
            attempt = execution.attempt if kind == STEP_STARTED else task.attempt
            return go_event_id(task.run_id, task.step_id, kind, attempt)
        counted = kind in (STEP_STARTED, STEP_RELEASED)
        deliveries = execution.deliveries if counted else 1
        return event_id(
            task.run_id, task.step_id, kind, execution.attempt, task.iteration, deliveries
        )

    # ------------------------------------------------------------------ getting it stored

    async def _send(
        self, execution: Execution, event: Event, message_id: str, expected: int | None = None
    ) -> Sending:
        subject = history_subject(event.run_id)
        headers = execution.trace_headers()
        implementations = self._hooks.pre_publish
        if implementations:
            message = Message(subject, headers, event.type)
            known = {"ctx": execution.context, "message": message}
            await walk(implementations, execution.inflight, known, VITAL)
            headers = sendable(message.headers, implementations) if message.headers else {}
        if headers:
            event.trace_parent = headers.get("traceparent", "")
            event.trace_state = headers.get("tracestate", "")
        headers[HEADER_MSG_ID] = message_id
        if expected is not None:
            headers[EXPECTED_SEQUENCE] = str(expected)
        data = encode_event(event)
        future = await self._transport.publish(subject, data, headers)
        return Sending(subject, data, headers, future, execution.started_sequence)

    async def _stored(self, sending: Sending) -> Stored:
        try:
            return await sending.future
        except PublishError as error:
            return await self._stored_again(sending, error)

    async def _stored_again(self, sending: Sending, error: PublishError) -> Stored:
        """Send what was not stored again, after the pause that the failure asks for."""
        failed: PublishError | None = error

        async def again() -> Stored:
            nonlocal failed
            if failed is not None:
                first, failed = failed, None
                raise first
            sending.resent = True
            if sending.fence:
                sending.headers.setdefault(EXPECTED_SEQUENCE, str(sending.fence))
            future = await self._transport.publish(sending.subject, sending.data, sending.headers)
            return await future

        return await retry_nats(
            again, attempts=self._config.publish_attempts, before=self._count_retry
        )

    def _count_retry(self) -> None:
        self._counters.publish_retries += 1

    async def _newer(self, execution: Execution, message_id: str, seen: int) -> int | None:
        """Read what came after ``seen``: None where our own event is there, else the newest one.

        Raises:
            SupersededError: The step was started or ended by somebody else.
        """
        task = execution.task
        own_start = self._id(execution, STEP_STARTED)
        events = await self._transport.history(
            task.run_id,
            since_ns=execution.delivery.timestamp_ns,
            after_sequence=seen,
            limit=self._config.history_events_max,
        )
        for stored in events:
            seen = stored.sequence
            if stored.message_id == message_id:
                return None
            event = _readable(stored)
            if event is None or event.step_id != task.step_id:
                continue
            if stored.message_id == own_start and event.worker_id == self._worker_id:
                continue
            if event.type in RESOLUTIONS or (
                event.type == STEP_STARTED and _takes_over(stored, execution)
            ):
                raise SupersededError(f"{event.type} by {event.worker_id or 'the engine'} is newer")
        return seen


def _takes_over(start: StoredEvent, execution: Execution) -> bool:
    """Whether a start is that of a later delivery, or, where it does not say, a later start."""
    if start.sequence == execution.started_sequence:
        return False
    deliveries = deliveries_of(start.message_id)
    if deliveries:
        return deliveries > execution.deliveries
    return start.sequence > execution.started_sequence


def _distinct() -> str:
    """What makes a message id one that nobody else has."""
    return f".x{time.time_ns()}"


def _readable(stored: StoredEvent) -> Event | None:
    try:
        return decode_event(stored.data)
    except DecodeError:
        return None


def released_payload(reason: str, delay: timedelta, error: str = "", *, kept: str = "") -> bytes:
    """The payload of our own event type, for us and for people who read a history.

    Args:
        kept: The message that is acked, because somebody keeps its task.
    """
    payload: dict[str, str | int] = {
        "reason": reason,
        "delay_ms": int(delay.total_seconds() * 1000),
    }
    if error:
        payload["error"] = clean_text(error, ERROR_TEXT_BYTES_MAX)
    if kept:
        payload["kept"] = kept
    return msgspec.json.encode(payload)
