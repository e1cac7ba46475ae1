"""The tasks that wait without a slot: one entry of a bucket each.

An entry has the whole message that will dispatch its task again. What a worker has to remember of
it - for which signal, until when - is in its headers, so that nobody reads the bodies of others.

An entry alone moves nothing: as long as the message that brought the task is in its queue, the task
is the queue's. So whatever dies between storing the entry and acking the message, the message comes
again, and its handler stores the entry anew or goes on without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy
from nats.js.errors import NotFoundError

from dagnats_worker.errors import KeyValueError, SupersededError, UsageError
from dagnats_worker.hookspecs import Entry, KeptTask, KeyValue, WorkerFacade
from dagnats_worker_signals._errors import SignalUsageError

HEADER_WAITS = "Dagnats-Signal-Waits"
HEADER_LATE = "Dagnats-Signal-Late"
HEADER_SIGNAL = "Dagnats-Signal"
HEADER_UNTIL = "Dagnats-Until"
HEADER_WORKER = "Dagnats-Parked-By"
MARKER_TTL = {"Nats-TTL": "10m"}
"""How long a delete marker stays: longer than any worker needs to hear of it."""

HEADER_BYTES_MAX = 2048
"""What the headers of an entry, or of a message, need beside those that are in the entry."""

MESSAGE_HEADERS_BYTES_MAX = 65_535
"""How long the headers of a message may be that a stream takes."""

PUT_ATTEMPTS_MAX = 10

_unfit = re.compile(r"[^-_=a-zA-Z0-9]")


@dataclass(frozen=True, slots=True)
class Waits:
    """For what a task has waited without a slot, from its first dispatch on.

    Attributes:
        until_s: When the time for each signal is over, in seconds since the epoch.
        late: Whose time is over, by the clock of who dispatched the task again.
    """

    until_s: Mapping[str, float]
    late: frozenset[str] = frozenset()

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Waits:
        """What the headers of a task say; nothing where they are not readable."""
        try:
            known = json.loads(headers.get(HEADER_WAITS, "{}"))
            until_s = {str(name): float(until_s) for name, until_s in known.items()}
        except (ValueError, TypeError, AttributeError):
            return cls({})
        return cls(until_s, frozenset(headers.get(HEADER_LATE, "").split()))

    def with_wait(self, name: str, until_s: float) -> Waits:
        """And for one more."""
        return replace(self, until_s={**self.until_s, name: until_s})

    def headers(self) -> dict[str, str]:
        """The same for the next message of the task."""
        late = {HEADER_LATE: " ".join(sorted(self.late))} if self.late else {}
        return {HEADER_WAITS: json.dumps(dict(self.until_s)), **late}


@dataclass(frozen=True, slots=True)
class Record:
    """A parked task.

    Attributes:
        entry: Its key in the bucket.
        signal: The key of the signal that it waits for.
        until_s: When its time is over, in seconds since the epoch.
        worker_id: Who has parked it, and so looks at it first.
        stream: Of the message that brought the task.
        sequence: Of that message in its stream.
        deliveries: How often the task was delivered until then.
        revision: Of the entry; 0 before it is written.
    """

    entry: str
    signal: str
    until_s: float
    worker_id: str
    stream: str
    sequence: int
    deliveries: int
    subject: str
    headers: Mapping[str, str]
    data: bytes
    revision: int = 0

    def encode(self) -> bytes:
        """One line of JSON, and then the body of the task as it is."""
        names = ("stream", "sequence", "deliveries", "subject", "headers")
        return (
            json.dumps({name: getattr(self, name) for name in names}).encode() + b"\n" + self.data
        )

    @classmethod
    def decode(cls, entry: Entry) -> Record:
        """Read an entry of the bucket.

        Raises:
            ValueError: Somebody else has written it.
        """
        head, _, data = entry.value.partition(b"\n")
        try:
            known: dict[str, Any] = json.loads(head)
            return cls(
                entry=entry.key,
                signal=entry.headers[HEADER_SIGNAL],
                until_s=float(entry.headers[HEADER_UNTIL]),
                worker_id=entry.headers.get(HEADER_WORKER, ""),
                data=data,
                revision=entry.revision,
                **known,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{entry.key!r} is no parked task: {head[:80]!r}") from error

    def entry_headers(self) -> dict[str, str]:
        """What is to be known of it without reading it."""
        return {
            HEADER_SIGNAL: self.signal,
            HEADER_UNTIL: repr(self.until_s),
            HEADER_WORKER: self.worker_id,
        }


class Parking:
    """The bucket of parked tasks, as a handler that wants to park uses it.

    Attributes:
        parked: How many tasks of the fleet are parked, as far as this worker knows.
    """

    def __init__(self, worker: WorkerFacade, kv: KeyValue, parked_max: int) -> None:
        self.parked = 0
        self._worker = worker
        self._kv = kv
        self._parked_max = parked_max
        self._is_queue: dict[str, bool] = {}

    def is_full(self) -> bool:
        """Whether another one would be too many."""
        return self.parked >= self._parked_max

    async def takes(self, stream: str) -> bool:
        """Whether a task of this stream can be parked: it forgets what was acked, as a queue does.

        The streams of sticky tasks do not, and a sticky task is to stay with its worker anyway.
        """
        known = self._is_queue.get(stream)
        if known is None:
            js = jetstream_of(self._worker)
            if js is None:
                return False
            try:
                retention = (await js.stream_info(stream)).config.retention
            except nats.errors.Error as error:
                raise KeyValueError(
                    f"cannot tell whether {stream!r} is a queue: {error}"
                ) from error
            known = self._is_queue[stream] = retention == RetentionPolicy.WORK_QUEUE
        return known

    async def put(self, kept: KeptTask, signal: str, until_s: float, waits: Waits) -> Record:
        """Store a task.

        Args:
            waits: For what it has waited until now, this time too.

        Raises:
            SignalUsageError: It is too large.
            SupersededError: A later delivery of the same message has parked it.
            KeyValueError: There is no bucket, or no answer.
        """
        record = Record(
            entry=f"{_unfit.sub('_', kept.stream)}.{kept.sequence}",
            signal=signal,
            until_s=until_s,
            worker_id=self._worker.worker_id,
            stream=kept.stream,
            sequence=kept.sequence,
            deliveries=kept.deliveries,
            subject=kept.subject,
            headers={**kept.headers, **waits.headers()},
            data=kept.data,
        )
        value = record.encode()
        self._check_sizes(record, len(value))
        revision = 0
        for _ in range(PUT_ATTEMPTS_MAX):
            try:
                written = await self._kv.put(
                    record.entry, value, headers=record.entry_headers(), expected_revision=revision
                )
                return replace(record, revision=written)
            except KeyValueError as error:
                if not error.conflict:
                    raise
            revision = await self._revision_to_replace(record)
        raise KeyValueError(f"the parked task {record.entry!r} changes too fast")

    def _check_sizes(self, record: Record, size: int) -> None:
        """What cannot be sent again must not be stored: nobody would have the task then."""
        most = self._worker.max_payload
        if size + HEADER_BYTES_MAX > most:
            raise SignalUsageError(
                f"the task has {size} bytes with its headers, and cannot be parked: the server "
                f"takes at most {most}, of which {HEADER_BYTES_MAX} are needed; wait without "
                "park=True, store the input elsewhere, or raise max_payload"
            )
        size = sum(len(f"{name}: {value}\r\n".encode()) for name, value in record.headers.items())
        if size + HEADER_BYTES_MAX > MESSAGE_HEADERS_BYTES_MAX:
            raise SignalUsageError(
                f"the task's headers have {size} bytes, and it cannot be parked: a stream takes at "
                f"most {MESSAGE_HEADERS_BYTES_MAX}, of which {HEADER_BYTES_MAX} are needed; wait "
                "without park=True, or submit it with shorter headers"
            )

    async def _revision_to_replace(self, record: Record) -> int:
        """An earlier delivery of the message had died; a later one means that we are too late."""
        entry = await self._kv.get(record.entry)
        if entry is None:
            return 0
        if Record.decode(entry).deliveries > record.deliveries:
            raise SupersededError(f"a later delivery of {record.entry} has parked its task")
        return entry.revision

    async def discard(self, record: Record) -> None:
        """The task is not to be parked after all; or it is dispatched.

        A record that was written anew stays.

        Raises:
            KeyValueError: No answer.
        """
        try:
            await self._kv.delete(
                record.entry, headers=MARKER_TTL, expected_revision=record.revision
            )
        except KeyValueError as error:
            if not error.conflict:
                raise


def jetstream_of(worker: WorkerFacade) -> JetStreamContext | None:
    """None in memory, where nothing is parked."""
    try:
        js: JetStreamContext = worker.jetstream
    except UsageError:
        return None
    return js


async def is_gone(js: JetStreamContext, stream: str, sequence: int) -> bool:
    """Whether a message was acked, so that its queue has forgotten it."""
    try:
        await js.get_msg(stream, sequence)
    except NotFoundError:
        return True
    return False
