"""One stream of the in-memory server: what it stores, refuses and forgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dagnats_worker._naming import filters_overlap
from dagnats_worker._protocol import HEADER_MSG_ID
from dagnats_worker._transport import Stored
from dagnats_worker.errors import PublishError
from dagnats_worker.testing._clock import MICROSECOND, Clock

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"

# Source: nats-server, errors.json.
WRONG_LAST_SEQUENCE = 10071
STORE_FAILED = 10077


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a stream.

    Attributes:
        sequence: Its place in the stream, 1 for the first.
        timestamp_ns: When it was stored; later for each message of the server.
    """

    stream: str
    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    timestamp_ns: int

    @property
    def timestamp(self) -> datetime:
        """When it was stored."""
        return datetime.fromtimestamp(self.timestamp_ns / 1e9, UTC)

    def json(self) -> Any:
        """The body as a Python value.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(self.data)


class Stream:
    """A stream, with the configuration that matters to a worker.

    Args:
        stamp: Gives each message its time; no two messages get the same.
        per_subject_max: How many messages of one subject are kept; 0 for all.

    Attributes:
        work_queue: A message is removed when it is acked.
        full: Refuses whatever is to be stored.
    """

    def __init__(
        self,
        name: str,
        subjects: list[str],
        *,
        clock: Clock,
        stamp: Callable[[], int],
        work_queue: bool = False,
        max_age: timedelta = timedelta(0),
        duplicate_window: timedelta = timedelta(0),
        per_subject_max: int = 0,
    ) -> None:
        self.name = name
        self.subjects = subjects
        self.work_queue = work_queue
        self.full = False
        self.last_sequence = 0
        self._clock = clock
        self._stamp = stamp
        self._max_age_ns = max_age // MICROSECOND * 1000
        self._window_ns = duplicate_window // MICROSECOND * 1000
        self._per_subject_max = per_subject_max
        self._messages: dict[int, StoredMessage] = {}
        self._by_subject: dict[str, list[int]] = {}
        self._ids: dict[str, tuple[int, int]] = {}
        self._listeners: list[Callable[[StoredMessage], None]] = []

    # ------------------------------------------------------------------ writing

    def takes(self, subject: str) -> bool:
        """Whether a message on this subject belongs here."""
        return any(filters_overlap(own, subject) for own in self.subjects)

    def listen(self, callback: Callable[[StoredMessage], None]) -> Callable[[], None]:
        """Be told of each message that is stored; returns what ends it."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    @property
    def listening(self) -> int:
        """How many are told of what is stored."""
        return len(self._listeners)

    def store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Stored:
        """Store a message, unless its id was seen within the window.

        Raises:
            PublishError: The stream refuses it, with the code that a server gives.
        """
        self._forget_old()
        self._check_expected(subject, headers)  # before the id, as nats-server 2.15 does
        message_id = headers.get(HEADER_MSG_ID, "")
        if message_id in self._ids:
            return Stored(self._ids[message_id][0], duplicate=True)
        if self.full:
            raise PublishError(f"{subject}: maximum messages exceeded", STORE_FAILED)
        self.last_sequence += 1
        message = StoredMessage(
            self.name, self.last_sequence, subject, data, dict(headers), self._stamp()
        )
        self._messages[message.sequence] = message
        same = self._by_subject.setdefault(subject, [])
        same.append(message.sequence)
        if message_id and self._window_ns:
            self._ids[message_id] = (message.sequence, self._clock.time_ns())
        if self._per_subject_max and len(same) > self._per_subject_max:
            self.remove(same[0])
        for listener in list(self._listeners):
            listener(message)
        return Stored(message.sequence)

    def _check_expected(self, subject: str, headers: Mapping[str, str]) -> None:
        expected = headers.get(EXPECTED_SEQUENCE)
        newest = self._by_subject.get(subject, [0])[-1]
        if expected is not None and int(expected) != newest:
            raise PublishError(f"{subject}: wrong last sequence: {newest}", WRONG_LAST_SEQUENCE)

    def remove(self, sequence: int) -> None:
        """Remove a message, where it is still there."""
        message = self._messages.pop(sequence, None)
        if message is None:
            return
        same = self._by_subject[message.subject]
        same.remove(sequence)
        if not same:
            del self._by_subject[message.subject]

    def _forget_old(self) -> None:
        """Ids and messages are in the order of arrival, so the look ends at the first young one."""
        now_ns = self._clock.time_ns()
        forgotten: list[str] = []
        for message_id, (_, seen_ns) in self._ids.items():
            if now_ns - seen_ns < self._window_ns:
                break
            forgotten.append(message_id)
        for message_id in forgotten:
            del self._ids[message_id]
        too_old: list[int] = []
        for sequence, message in self._messages.items() if self._max_age_ns else ():
            if now_ns - message.timestamp_ns < self._max_age_ns:
                break
            too_old.append(sequence)
        for sequence in too_old:
            self.remove(sequence)

    # ------------------------------------------------------------------ reading

    def get(self, sequence: int) -> StoredMessage | None:
        """The message with this sequence, where it is still there."""
        self._forget_old()
        return self._messages.get(sequence)

    def messages(self, subject: str = ">") -> Iterator[StoredMessage]:
        """The messages of a subject, oldest first; wildcards are allowed."""
        self._forget_old()
        if "*" not in subject and ">" not in subject:
            return iter([self._messages[found] for found in self._by_subject.get(subject, [])])
        return iter(
            [found for found in self._messages.values() if filters_overlap(subject, found.subject)]
        )

    def newest(self, subject: str) -> list[StoredMessage]:
        """The newest message of each subject that matches, oldest first."""
        by_subject = {message.subject: message for message in self.messages(subject)}
        return sorted(by_subject.values(), key=lambda message: message.sequence)

    def next(self, subject: str, after_sequence: int) -> StoredMessage | None:
        """The first message of a subject after a sequence; wildcards are allowed."""
        self._forget_old()
        for sequence in range(after_sequence + 1, self.last_sequence + 1):
            message = self._messages.get(sequence)
            if message is not None and filters_overlap(subject, message.subject):
                return message
        return None
