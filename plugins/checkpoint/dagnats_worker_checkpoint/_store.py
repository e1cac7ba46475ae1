"""The checkpoint of one step: one key of the bucket, read and written for one execution.

Every write is a compare-and-set on the revision that this execution knows. Where somebody else has
written since, the newer attempt of the two goes on, and the other one is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dagnats_worker import Paused
from dagnats_worker.errors import DagnatsError, KeyValueError
from dagnats_worker.hookspecs import encode_value
from dagnats_worker_checkpoint._errors import CheckpointTooLargeError, StaleAttemptError
from dagnats_worker_checkpoint._place import Place, is_key, key_of, message_bytes
from dagnats_worker_checkpoint._saved import KIND_HEADER, NOTHING, STATE, TURN_HEADER, Saved
from dagnats_worker_checkpoint._writer import WRITER_HEADER, Writer

if TYPE_CHECKING:
    from dagnats_worker import BaseContext, Entry

T = TypeVar("T")

WRITES_MAX = 20
"""How often a write is tried again because somebody else was faster."""

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"

SENT_AGAIN = ("Dagnats-Kept", "Dagnats-Dlq-")
"""How the headers begin that say that a task is dispatched again by a new message."""


class StepCheckpoint:
    """The checkpoint of the step that one execution runs; ``ctx.use(CHECKPOINTS)`` returns it."""

    def __init__(self, ctx: BaseContext, place: Place) -> None:
        self._ctx = ctx
        self._place = place
        self._writer: Writer | None = None
        self._revision: int | None = None  # None: nothing was read yet; 0: there was nothing
        self._paused = False  # what is stored is the marker of a pause
        self._pausing: str | None = None  # the pause that this execution has begun
        self._resumed_from: str | None = None
        self._trouble: DagnatsError | None = None
        self._over = False  # the ack waits for what is done now, so nothing is tried for long
        self._lock = asyncio.Lock()

    # ------------------------------------------------------------------ for handlers

    @property
    def resumed_from(self) -> str | None:
        """The name of the pause after which the step goes on now; None where it has not paused.

        A task that was delivered before, or is tried again, is looked up before its handler is
        started. On a first delivery it is None until something else has read the checkpoint.

        Raises:
            KeyValueError: The look-up has failed.
            StaleAttemptError: A newer attempt has the checkpoint.
        """
        if self._trouble is not None:
            raise self._trouble
        return self._resumed_from

    async def checkpoint(self, state: Any) -> None:
        """Save the state of this step; bytes as they are, all else as JSON.

        Raises:
            UsageError: The state is not JSON, or the step cannot have a checkpoint.
            CheckpointTooLargeError: The server does not take a state of that size.
            StaleAttemptError: A newer attempt of the step has the checkpoint.
            KeyValueError: It is not known to be saved.
        """
        encoded = encode_value(state)
        async with self._lock:
            if self._revision is None:
                await self._read()
            await self._write(Saved(encoded, self._pausing))

    async def load_checkpoint(self) -> bytes | None:
        """The state that was saved last, or None; never the marker of a pause.

        Raises:
            StaleAttemptError: A newer attempt of the step has the checkpoint.
            KeyValueError: The bucket is missing, or the server does not answer.
        """
        async with self._lock:
            return await self._state()

    async def pause(self, name: str, duration: timedelta) -> None:
        """Leave a marker beside the state, and record that the step is to be run again.

        Raises:
            ValueError: The name is empty, or the duration is not longer than zero.
            TypeError: They are not a text and a timedelta.
            UsageError: An outcome is recorded already; then nothing is written.
            CheckpointTooLargeError: The state and the marker together are too large.
            StaleAttemptError: A newer attempt of the step has the checkpoint.
            KeyValueError: It is not known to be saved.
        """
        outcome = Paused(_named(name), _positive(duration))
        async with self._lock:
            if self._ctx.outcome is None:
                await self._write(Saved(await self._state(), name))
                self._pausing = name
            self._ctx.record(outcome)

    # ------------------------------------------------------------------ for the plugin's hooks

    @property
    def may_exist(self) -> bool:
        """Whether this execution, or one before it, can have saved anything."""
        if self._revision is None:
            may_have = self._ctx.iteration > 0 or has_begun_before(self._ctx)
            return may_have and is_key(f"{self._ctx.run_id}.{self._ctx.step_id}")
        return self._revision > 0

    @property
    def is_paused(self) -> bool:
        """Whether what is stored is the marker of a pause, as far as is known."""
        return self._paused

    async def look(self) -> None:
        """Read ahead for ``resumed_from``; a failure is raised where that is used."""
        async with self._lock:
            try:
                await self._read(retry=False)
            except DagnatsError as error:
                self._trouble = error

    async def end_pause(self) -> None:
        """Put the user's state back where the marker of a pause is."""
        async with self._cleaning():
            saved = await self._read()
            if saved.pause is None:
                return
            if saved.state is None:
                await self._delete()
            else:
                await self._write(Saved(saved.state))

    async def remove(self) -> None:
        """Delete the checkpoint, after a copy of the state was put where it expires."""
        async with self._cleaning():
            saved = await self._read()
            if saved == NOTHING:
                return
            expiring = self._place.expiring
            if expiring is not None and saved.state is not None:
                await expiring.put(self._key(), saved.state, headers=self._headers(STATE))
            await self._delete()

    @asynccontextmanager
    async def _cleaning(self) -> AsyncIterator[None]:
        async with self._lock:
            self._over = True
            yield

    # ------------------------------------------------------------------ reading

    async def _state(self) -> bytes | None:
        """The user's state; that of a step which had ended may be where it expires."""
        saved = await self._read()
        expiring = self._place.expiring
        if saved != NOTHING or expiring is None or not has_begun_before(self._ctx):
            return saved.state
        key = self._key()
        found = await self._reliably(lambda: expiring.get(key))
        return found.value if found else None

    async def _read(self, *, retry: bool = True) -> Saved:
        key = self._key()
        found = await self._reliably(lambda: self._place.kv.get(key, deleted=True), retry=retry)
        return self._learn(found)

    def _learn(self, found: Entry | None) -> Saved:
        """Take in what is stored now.

        Raises:
            StaleAttemptError: A newer attempt has written it.
        """
        first = self._revision is None
        self._compare(Writer.read(found.headers) if found else None, first=first)
        saved = NOTHING
        if found is not None and not found.deleted:
            saved = Saved.decode(found.value, found.headers)
        self._revision = found.revision if found else 0
        self._paused = saved.pause is not None
        if first and found is not None:
            turn = str(self._ctx.iteration)
            this_turn = found.headers.get(TURN_HEADER, turn) == turn
            self._resumed_from = saved.pause if this_turn else None
        self._trouble = None
        return saved

    def _compare(self, other: Writer | None, *, first: bool) -> None:
        """Find the place of this attempt in the order of attempts, and who is before it."""
        if other is None:
            return
        if first:
            self._writer = self._own.after(other, doubtful=self._ctx.delivery.doubtful)
        if self._own.is_superseded_by(other):
            raise StaleAttemptError(
                f"a newer attempt has the checkpoint of {self._ctx.task_id}: {other}; this is "
                f"{self._own}, which has lost its lease and is not to go on"
            )

    # ------------------------------------------------------------------ writing

    async def _write(self, saved: Saved) -> None:
        key, value = self._key(), saved.encode()
        self._refuse_too_large(saved, value)

        async def put() -> int:
            headers = self._headers(saved.kind)
            if self._revision:
                expected = self._revision
                return await self._place.kv.put(
                    key, value, headers=headers, expected_revision=expected
                )
            # Not expected_revision=0, which takes a delete marker for nothing: whoever has left it
            # may be newer.
            headers[EXPECTED_SEQUENCE] = "0"
            return await self._place.kv.put(key, value, headers=headers)

        await self._compare_and_set(put)
        self._paused = saved.pause is not None

    async def _delete(self) -> None:
        """Leave a delete marker that says who left it, so that a stale attempt sees it too."""
        key = self._key()

        async def delete() -> int:
            headers = {WRITER_HEADER: self._own.header()}
            await self._place.kv.delete(key, headers=headers, expected_revision=self._revision)
            return 0

        await self._compare_and_set(delete)
        self._paused = False

    async def _compare_and_set(self, write: Callable[[], Awaitable[int]]) -> None:
        """Write over what is known, and over what older attempts have written meanwhile.

        A write whose answer was lost is a conflict with ourselves, which the header tells.
        """
        for _ in range(WRITES_MAX):
            try:
                self._revision = await self._reliably(write)
            except KeyValueError as error:
                if not error.conflict:
                    raise
            else:
                return
            await self._read()
        raise KeyValueError(
            f"bucket {self._place.bucket!r}: somebody else writes {self._key()!r} all the time"
        )

    def _refuse_too_large(self, saved: Saved, value: bytes) -> None:
        """A message over the limit would close the connection, so it is not sent at all."""
        size_max = self._place.size_max()
        size = message_bytes(value, self._headers(saved.kind))
        if not size_max or size <= size_max:
            return
        what = "with the marker of its pause " if saved.pause is not None else ""
        raise CheckpointTooLargeError(
            f"the checkpoint of {self._ctx.task_id} has {len(saved.state or b'')} bytes, and "
            f"{what}{size} bytes as a message, but the server's max_payload is {size_max} bytes; "
            "keep the state elsewhere and save a reference, or raise max_payload",
            size=size,
            size_max=size_max,
        )

    async def _reliably(self, call: Callable[[], Awaitable[T]], *, retry: bool = True) -> T:
        return await self._place.reliably(call, retry=retry and not self._over)

    # ------------------------------------------------------------------ what is written

    def _key(self) -> str:
        return key_of(self._ctx.run_id, self._ctx.step_id)

    @property
    def _own(self) -> Writer:
        if self._writer is None:
            self._writer = Writer.of(self._ctx.delivery, self._ctx.worker_id)
        return self._writer

    def _headers(self, kind: str) -> dict[str, str]:
        return {
            KIND_HEADER: kind,
            TURN_HEADER: str(self._ctx.iteration),
            WRITER_HEADER: self._own.header(),
        }


def has_begun_before(ctx: BaseContext) -> bool:
    """Whether an attempt before this one may have saved or paused, in the same turn of a loop."""
    return (
        ctx.deliveries > 1
        or ctx.attempt > 1
        or ctx.delivery.doubtful
        or any(name.startswith(SENT_AGAIN) for name in ctx.headers)
    )


def _named(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name is a text, got {name!r}")
    if not name:
        raise ValueError("name is empty; a pause has a name, which resumed_from returns")
    return name


def _positive(duration: timedelta) -> timedelta:
    if not isinstance(duration, timedelta):
        raise TypeError(f"duration is a timedelta, got {duration!r}")
    if duration <= timedelta(0):
        raise ValueError(f"duration is longer than zero, got {duration!r}")
    return duration
