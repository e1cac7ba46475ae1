"""Who holds an idempotency key, and what the task that held it has returned.

A bucket has one entry for each key: a claim while a task runs, and its output afterwards. Every
write is a compare-and-set, so of two tasks that want a key at the same time one loses, and looks
again.
Nothing here knows of plugins.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import KeyValue

ATTEMPTS_MAX = 10
TOKEN_BYTES = 8
TYPE_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a key.

    Attributes:
        task_id: The task that holds the key, or has held it to its end.
        token: Of the one delivery of that task; another delivery is another token.
        done: The task has ended, and ``output`` is what it ended with.
        until: From then on the record counts no more, in seconds since the epoch.
    """

    key: str
    task_type: str
    task_id: str
    token: str
    done: bool
    until: float
    output: bytes = b""

    def encode(self) -> bytes:
        """One line of JSON, and then the output as it is."""
        head = {
            name: getattr(self, name)
            for name in ("key", "task_type", "task_id", "token", "done", "until")
        }
        return json.dumps(head).encode() + b"\n" + self.output

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Read an entry of the bucket.

        Raises:
            KeyValueError: Somebody else has written it.
        """
        head, _, output = data.partition(b"\n")
        try:
            known: dict[str, Any] = json.loads(head)
            return cls(**known, output=output)
        except (ValueError, TypeError) as error:
            raise KeyValueError(f"not an entry of the idempotency guard: {head[:80]!r}") from error


@dataclass(slots=True)
class Claim:
    """A key that a task of this worker holds.

    Attributes:
        revision: Of the entry in the bucket.
        resumed: An earlier delivery of the same task held it, and may have done half of its work.
        over: Nothing is to be written any more.
    """

    entry: str
    record: Record
    revision: int
    resumed: bool
    over: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LostClaimError(KeyValueError):
    """Somebody else holds the key; this worker stood still for longer than a claim lasts."""


class Store:
    """The keys of one bucket.

    Args:
        ttl: How long an output answers for its task.
        claim_ttl: How long a claim lasts that nobody renews.
        now: The time, in seconds since the epoch.
    """

    def __init__(
        self,
        kv: KeyValue,
        *,
        ttl: timedelta,
        claim_ttl: timedelta,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._kv = kv
        self._ttl_s = ttl.total_seconds()
        self._claim_ttl_s = claim_ttl.total_seconds()
        self._now = now

    async def claim(self, task_type: str, key: str, task_id: str) -> Claim | Record:
        """Take a key, or learn who has it.

        Returns:
            A claim, or the record of the task that holds the key or has ended.

        Raises:
            KeyValueError: The bucket cannot be used.
        """
        entry = entry_of(key, task_type)
        token = secrets.token_hex(TOKEN_BYTES)
        wanted = Record(key, task_type, task_id, token, done=False, until=0.0)
        revision, resumed = 0, False
        for _ in range(ATTEMPTS_MAX):
            record = replace(wanted, until=self._now() + self._claim_ttl_s)
            try:
                written = await self._kv.put(entry, record.encode(), expected_revision=revision)
            except KeyValueError as error:
                if not error.conflict:
                    raise
            else:
                return Claim(entry, record, written, resumed)
            revision, found = await self._look(entry)
            if found is not None and found.until > self._now():
                if found.done or found.task_id != task_id:
                    return found
                resumed = True
        raise KeyValueError(f"the key {key!r} changes hands too fast; trying again later")

    async def keep(self, claim: Claim, longer: timedelta = timedelta(0)) -> None:
        """Renew a claim, for as long as a claim lasts and ``longer``."""
        until = self._now() + self._claim_ttl_s + longer.total_seconds()
        await self._write(claim, replace(claim.record, until=until))

    async def finish(self, claim: Claim, output: bytes) -> None:
        """Store what the task ends with."""
        until = self._now() + self._ttl_s
        await self._write(claim, replace(claim.record, done=True, until=until, output=output))

    async def release(self, claim: Claim) -> None:
        """Let go of a key, for whoever wants it next."""
        async with claim.lock:
            if claim.over:
                return
            claim.over = True
            try:
                await self._kv.delete(claim.entry, expected_revision=claim.revision)
            except KeyValueError as error:
                if not error.conflict:
                    raise

    async def _write(self, claim: Claim, record: Record) -> None:
        """Write, unless somebody else has written.

        A write whose answer was lost is a conflict with ourselves, which the token tells.
        """
        async with claim.lock:
            if claim.over:
                return
            for _ in range(ATTEMPTS_MAX):
                try:
                    claim.revision = await self._kv.put(
                        claim.entry, record.encode(), expected_revision=claim.revision
                    )
                except KeyValueError as error:
                    if not error.conflict:
                        raise
                else:
                    claim.over = record.done
                    return
                claim.revision, found = await self._look(claim.entry)
                if found is None or found.token != record.token:
                    claim.over = True
                    raise LostClaimError(f"the key {record.key!r} was taken over by another task")
            raise KeyValueError(f"the key {record.key!r} changes too fast")

    async def _look(self, entry: str) -> tuple[int, Record | None]:
        found = await self._kv.get(entry)
        return (0, None) if found is None else (found.revision, Record.decode(found.value))


def entry_of(key: str, task_type: str) -> str:
    """The name of a key's entry; a key may have any characters, an entry's name may not."""
    return f"{_digest(key)}.{_digest(task_type)[:TYPE_DIGITS]}"


def entries_of(key: str) -> str:
    """What matches the entries of a key, whatever the task type."""
    return f"{_digest(key)}.*"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
