"""The stream of dead letters, for people: the newest, one of them, and back into its queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.header import Header, decode_header
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from dagnats_worker._letters import DeadLetter, read_letter
from dagnats_worker.errors import StartError, TransportError, UsageError, describe

STREAM = "DEAD_LETTERS"
FETCHED_AT_ONCE = 500
FETCH_WITHIN_S = 5.0
CONSUMER_GONE_AFTER_S = 30.0
NO_JETSTREAM = (
    "JetStream is not enabled; start the server with --jetstream, and enable it for the account of "
    "this user"
)
NO_ANSWER = "no answer; let this user publish to $JS.API.> and subscribe to _INBOX.>"
NO_STREAM = f"stream {STREAM} not found; start the engine, or create it with: dagnats-worker setup"


class Letters:
    """Reads dead letters over a connection of a command."""

    def __init__(self, client: NatsClient) -> None:
        self._js = client.jetstream()

    async def newest(self, limit: int, task_type: str | None = None) -> list[DeadLetter]:
        """The newest letters, oldest of them first, without their bodies.

        Args:
            task_type: Only letters of this task type.

        Raises:
            StartError: There is no such stream.
            TransportError: The server refused, or did not answer.
        """
        try:
            return await self._newest(limit, task_type)
        except NotFoundError as error:
            raise StartError(NO_STREAM) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise TransportError(f"cannot read {STREAM}: {_why(error)}") from error

    async def _newest(self, limit: int, task_type: str | None) -> list[DeadLetter]:
        state = (await self._js.stream_info(STREAM)).state
        if not state.messages:
            return []
        # With a filter nobody knows where the newest begin, so all that match are looked through.
        # Without one, the numbers of letters that somebody has deleted are stepped over.
        newest = limit + (state.num_deleted or 0)
        start = 1 if task_type else max(state.first_seq, state.last_seq - newest + 1)
        subject = f"dead.{task_type}.>" if task_type else "dead.>"
        consumer = await self._js.add_consumer(
            STREAM,
            api.ConsumerConfig(
                filter_subject=subject,
                ack_policy=api.AckPolicy.NONE,
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=start,
                headers_only=True,
                inactive_threshold=CONSUMER_GONE_AFTER_S,
            ),
        )
        try:
            return await self._read(consumer.name, consumer.num_pending or 0, limit)
        finally:
            with suppress(nats.errors.Error, TimeoutError):  # it goes by itself after a while
                await self._js.delete_consumer(STREAM, consumer.name)

    async def _read(self, consumer: str, pending: int, limit: int) -> list[DeadLetter]:
        subscription = await self._js.pull_subscribe_bind(consumer=consumer, stream=STREAM)
        kept: deque[DeadLetter] = deque(maxlen=limit)
        try:
            while pending > 0:
                batch = min(FETCHED_AT_ONCE, pending)
                messages = await subscription.fetch(batch, timeout=FETCH_WITHIN_S)
                kept.extend(map(_letter, messages))
                pending -= len(messages)
        finally:
            await subscription.unsubscribe()
        return list(kept)

    async def get(self, sequence: int) -> DeadLetter:
        """One letter, with its body.

        Raises:
            UsageError: There is none with this number.
            StartError, TransportError: As for :meth:`newest`.
        """
        try:
            found = await self._js.get_msg(STREAM, sequence)
        except NotFoundError as error:
            await self._check_stream()
            raise UsageError(
                f"there is no dead letter {sequence}; list them with: dagnats-worker dlq list"
            ) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise TransportError(f"cannot read {STREAM}: {_why(error)}") from error
        stored_at = found.time or datetime.now(UTC)
        headers = _texts(found.headers)
        return read_letter(sequence, stored_at, str(found.subject), headers, found.data or b"")

    async def _check_stream(self) -> None:
        try:
            await self._js.stream_info(STREAM)
        except NotFoundError as error:
            raise StartError(NO_STREAM) from error

    async def replay(self, letter: DeadLetter) -> int:
        """Put the task of a letter back into its queue, and return its sequence there.

        Raises:
            TransportError: No stream took it, or the server did not answer.
        """
        assert letter.data is not None, "it was read with its body"
        try:
            stored = await self._js.publish(
                letter.task_subject,
                letter.data,
                headers=letter.replay_headers,
                timeout=timedelta(seconds=FETCH_WITHIN_S).total_seconds(),
            )
        except (nats.errors.Error, APIError, TimeoutError) as error:
            raise TransportError(
                f"cannot publish to {letter.task_subject}: {describe(error)}"
            ) from error
        return stored.seq


def _why(error: Exception) -> str:
    if isinstance(error, ServiceUnavailableError):
        return NO_JETSTREAM
    return NO_ANSWER if isinstance(error, TimeoutError) else describe(error)


def _letter(message: Msg) -> DeadLetter:
    metadata = message.metadata
    return read_letter(
        metadata.sequence.stream, metadata.timestamp, message.subject, _texts(message.headers), None
    )


def _texts(headers: Mapping[str, Any] | None) -> dict[str, str]:
    """Headers as text; where one is not ASCII, nats-py hands out something else."""
    return {name: _text(value) for name, value in (headers or {}).items()}


def _text(value: Any) -> str:
    if not isinstance(value, Header):
        return str(value)
    parts = decode_header(value)
    return "".join(
        part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part, _ in parts
    )
