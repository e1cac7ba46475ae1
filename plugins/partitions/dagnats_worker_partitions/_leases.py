"""Leases of members, beside the record of their group, where members in Go do not see them.

Each member writes a key that ends by itself, again and again, from the thread that renews the
leases of tasks. Who has done that once and does it no more is dead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import KeepAlive, KeyValue, WorkerFacade
from dagnats_worker_partitions._api import JetStreamApi

logger = logging.getLogger("dagnats_worker.partitions")

LEASE_BUCKET = "elastic-consumer-group-leases"
RENEWALS_PER_LEASE = 3


class MemberLease:
    """The lease of one member, and a look at those of the others.

    Args:
        group_key: Of the group's record.
        length: For a bucket that does not exist yet; all groups of a fleet share one.
    """

    def __init__(
        self, worker: WorkerFacade, group_key: str, member: str, length: timedelta
    ) -> None:
        self._worker = worker
        self._group_key = group_key
        self._member = member
        self._asked = length
        self._kv: KeyValue | None = None
        self._end: Callable[[], None] | None = None
        self._confirmed_at = 0.0
        self.length_s = length.total_seconds()

    async def begin(self) -> None:
        """Write the lease, and keep it.

        Raises:
            TransportError: The server did not answer.
            StartError: JetStream has no room for the bucket.
        """
        worker = self._worker
        self._kv = kv = await worker.create_kv(LEASE_BUCKET, ttl=self._asked)
        info = await JetStreamApi(worker.nats).stream(f"KV_{LEASE_BUCKET}")
        if info is not None and (max_age_ns := int(info["config"].get("max_age", 0))):
            self.length_s = max_age_ns / 1e9
        value = self._value()
        await kv.put(self._key(self._member), value)
        self._confirmed_at = time.monotonic()
        request = KeepAlive(
            f"$KV.{LEASE_BUCKET}.{self._key(self._member)}",
            value,
            answered=self._on_answer,
            failed=self._on_failure,
        )
        every = timedelta(seconds=self.length_s / RENEWALS_PER_LEASE)
        self._end = worker.keep_alive(request, every)

    def _key(self, member: str) -> str:
        return f"{self._group_key}.{member}"

    def _value(self) -> bytes:
        told = {
            "worker_id": self._worker.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        return json.dumps(told, separators=(",", ":")).encode()

    def _on_answer(self, answer: bytes) -> None:
        if b'"error"' in answer:
            self._on_failure(answer.decode(errors="replace"))
        else:
            self._confirmed_at = time.monotonic()

    def _on_failure(self, reason: str) -> None:
        logger.debug("lease of member %s: %s", self._member, reason)

    @property
    def age_s(self) -> float:
        """For how long nobody has confirmed it."""
        return time.monotonic() - self._confirmed_at

    async def present(self, members: Collection[str]) -> set[str]:
        """Which of these members have a lease, or have just left; all in one request.

        Raises:
            TransportError: The server did not answer.
        """
        prefix = f"$KV.{LEASE_BUCKET}.{self._group_key}."
        api = JetStreamApi(self._worker.nats)
        found = await api.subjects(f"KV_{LEASE_BUCKET}", f"{prefix}*")
        return {one.removeprefix(prefix) for one in found}.intersection(members)

    async def in_directory(self, members: Collection[str]) -> set[str] | None:
        """Which of these are in the workers' directory; None where that knows nothing of us."""
        directory = self._worker.kv("workers")
        own = self._worker.worker_id
        try:
            found = await _with_entry(directory, (own, *members))
        except KeyValueError as error:
            logger.debug("no directory of workers: %s", error)
            return None
        return found if own in found else None

    async def end(self) -> None:
        """Take the lease away: this member has left."""
        self.abandon()
        if self._kv is not None:
            await self._kv.delete(self._key(self._member))

    def abandon(self) -> None:
        """Renew no more."""
        if self._end is not None:
            self._end()
            self._end = None


async def _with_entry(kv: KeyValue, keys: Sequence[str]) -> set[str]:
    entries = await asyncio.gather(*(kv.get(key) for key in keys))
    return {key for key, entry in zip(keys, entries, strict=True) if entry is not None}
