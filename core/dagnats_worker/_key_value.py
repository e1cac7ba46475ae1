"""Key-value buckets, as the core and plugins use them, on a real server and in memory.

Everything here is data or a protocol; nothing does I/O.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a bucket.

    Attributes:
        value: Empty where the key was deleted.
        revision: The sequence of the write; what a compare-and-set expects.
        headers: As they were put.
        deleted: The newest write is a delete marker.
        timestamp_ns: When the server stored it, in nanoseconds since the epoch.
    """

    key: str
    value: bytes
    revision: int
    headers: Mapping[str, str]
    deleted: bool = False
    timestamp_ns: int = 0


class KeyValue(Protocol):
    """One key-value bucket.

    Every method raises ``KeyValueError`` when the bucket is missing or the server does not answer.
    """

    async def get(self, key: str, *, deleted: bool = False) -> Entry | None:
        """The newest entry of a key; None where there is none, or none but a delete marker.

        Args:
            deleted: Answer with the delete marker too, which has headers and a revision.
        """
        ...

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        expected_revision: int | None = None,
    ) -> int:
        """Write a key and return its revision.

        Raises:
            KeyValueError: Also where ``expected_revision`` (0: no such key, or a deleted one) is
                not the newest one; its ``conflict`` is then true.
        """
        ...

    async def delete(
        self,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        expected_revision: int | None = None,
    ) -> None:
        """Leave a delete marker for a key; it has these headers."""
        ...

    async def keys(self) -> list[str]:
        """The keys that have a value."""
        ...

    def watch(self, key: str) -> AsyncIterator[Entry]:
        """The newest entry of a key (wildcards allowed), if there is one, then every change.

        To a reader that is slow, a change that a newer one has replaced may not be told.
        """
        ...

    def follow(
        self, key: str, *, existing: bool = True, values: bool = True
    ) -> AbstractAsyncContextManager[AsyncIterator[Entry]]:
        """The same, begun when the block is entered: no later write is missed.

        After a restart of the server it goes on, and may tell of an entry twice. It ends with an
        error when the connection is closed for good, or the bucket is deleted.

        Args:
            existing: Begin with what is there; False for changes alone.
            values: False for entries with their headers and without their values.
        """
        ...
