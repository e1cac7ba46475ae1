"""Of two attempts of a step the newer one keeps the checkpoint, and the other one is told.

Method: a handler runs, and what another attempt has written meanwhile is put into the bucket by
hand. Real: the plugin and the worker, and the nats-server of the ``server`` variant. Fake: the
other attempt; the in-memory server of the other variant.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from checkpoint_support import Ground, MemoryGround, Stored, bench, once
from support import eventually

from dagnats_worker import CHECKPOINTS, TaskContext
from dagnats_worker.errors import SupersededError
from dagnats_worker_checkpoint import StaleAttemptError

LATER_NS = 60_000_000_000


def writer(
    ctx: TaskContext,
    *,
    stream: str | None = None,
    sequence: int = 0,
    later_ns: int = 0,
    deliveries: int = 0,
    worker_id: str = "worker-other",
) -> dict[str, str]:
    """The headers of another attempt's write; numbers are relative to those of this attempt."""
    mine = ctx.delivery
    parts = (
        stream or mine.stream,
        mine.sequence + sequence,
        mine.timestamp_ns + later_ns,
        mine.deliveries + deliveries,
        worker_id,
    )
    text = " ".join(str(part) for part in parts)
    return {"Dagnats-Checkpoint": "state", "Dagnats-Checkpoint-Writer": text}


NEWER: dict[str, dict[str, Any]] = {
    "redelivered": {"deliveries": 1},
    "a new message": {"sequence": 5, "later_ns": LATER_NS},
    "another stream": {"stream": "elsewhere", "sequence": -5, "later_ns": LATER_NS},
}
OLDER: dict[str, dict[str, Any]] = {
    "delivered before": {"deliveries": -1},
    "an old message": {"sequence": -1, "later_ns": -LATER_NS, "deliveries": 9},
    "another stream": {"stream": "elsewhere", "sequence": 9, "later_ns": -LATER_NS},
    "another stream, by a second": {"stream": "elsewhere", "later_ns": 1_000_000_000},
}


@dataclass
class Race:
    """An attempt that has saved, and then is told to go on.

    Attributes:
        fails: What the attempt gets, by what it calls.
    """

    ground: Ground
    other: dict[str, Any] | None
    saved_before: bool = True
    fails: dict[str, Exception] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def handler(self, ctx: TaskContext) -> None:
        if ctx.deliveries > 1:
            return
        if self.saved_before:
            await ctx.checkpoint("mine, at first")
        headers = {} if self.other is None else writer(ctx, **self.other)
        await self.ground.put(f"{ctx.run_id}.{ctx.step_id}", b"other", headers)
        for name, call in (
            ("checkpoint", lambda: ctx.checkpoint("mine")),
            ("load", ctx.load_checkpoint),
        ):
            try:
                await call()
            except StaleAttemptError as error:
                self.fails[name] = error
        self.done.set()
        if self.fails:
            raise ValueError("wrapped") from self.fails["checkpoint"]


async def race(ground: Ground, other: dict[str, Any] | None, **fields: Any) -> tuple[Race, Stored]:
    running = Race(ground, other, **fields)
    async with bench(ground, running.handler) as at:
        await at.submit()
        await once(running.done)
        await at.idle()
        stored = await at.stored()
    assert stored is not None
    return running, stored


@pytest.mark.parametrize("saved_before", [True, False], ids=["had saved", "first call"])
@pytest.mark.parametrize("other", NEWER.values(), ids=NEWER)
async def test_stale_attempt_is_told_and_writes_nothing(
    ground: Ground, other: dict[str, Any], *, saved_before: bool
) -> None:
    running, stored = await race(ground, other, saved_before=saved_before)
    assert set(running.fails) == {"checkpoint", "load"}
    assert stored.value == b"other"
    text = str(running.fails["checkpoint"])
    assert "worker-other" in text
    assert "a newer attempt has the checkpoint of run-" in text


@pytest.mark.parametrize("saved_before", [True, False], ids=["had saved", "first call"])
@pytest.mark.parametrize("other", OLDER.values(), ids=OLDER)
async def test_newer_attempt_writes_over_what_a_stale_one_has_saved(
    ground: Ground, other: dict[str, Any], *, saved_before: bool
) -> None:
    running, stored = await race(ground, other, saved_before=saved_before)
    assert not running.fails
    assert stored.value == b'"mine"'


async def test_write_of_a_go_worker_in_between_is_written_over(ground: Ground) -> None:
    """It does not say which attempt it is of, and nobody is refused for what is not known."""
    running, stored = await race(ground, None)
    assert not running.fails
    assert stored.value == b'"mine"'


async def test_attempt_whose_number_is_taken_already_is_the_later_one(ground: Ground) -> None:
    """A server that was killed has forgotten that it had delivered the message."""
    running, stored = await race(ground, {"deliveries": 0}, saved_before=False)
    assert not running.fails
    assert stored.headers["Dagnats-Checkpoint-Writer"].split()[3] == "2"


async def test_two_with_one_number_do_not_take_turns(ground: Ground) -> None:
    running, stored = await race(ground, {"deliveries": 0}, saved_before=True)
    assert set(running.fails) == {"checkpoint", "load"}
    assert stored.value == b"other"


async def test_message_of_a_stale_attempt_is_left_to_the_newer_one() -> None:
    ground = MemoryGround()
    running = Race(ground, {"deliveries": 1})
    async with bench(ground, running.handler) as at:
        run = await at.submit()
        await once(running.done)
        await at.idle()
        kinds = [event.data for event in await at.client.transport.history(at.run_id, limit=10)]
        assert len(kinds) == 1, "step.started, and nothing after it"
        ground.server.faults.redeliver()
        assert await run.result() is None


async def test_stale_attempt_sees_what_was_deleted_by_the_newer_one(ground: Ground) -> None:
    """The newer one has saved, has ended, and has cleaned up; nothing comes to life again."""
    errors: list[Exception] = []

    async def handler(ctx: TaskContext) -> None:
        assert await ctx.load_checkpoint() is None
        marker = {"KV-Operation": "DEL", **writer(ctx, deliveries=1)}
        await ground.put(f"{ctx.run_id}.{ctx.step_id}", b"", marker)
        try:
            await ctx.checkpoint("a zombie")
        except StaleAttemptError as error:
            errors.append(error)
            raise

    async with bench(ground, handler) as at:
        await at.submit()
        await eventually(lambda: errors, what="the stale attempt is told")
        await at.idle()
        stored = await at.stored()
    assert isinstance(errors[0], SupersededError)
    assert stored is not None
    assert stored.deleted


async def test_resumed_from_of_a_stale_attempt_is_an_error(ground: Ground) -> None:
    seen: list[Exception] = []

    async def handler(ctx: TaskContext) -> None:
        if ctx.deliveries == 1:
            await ground.put(f"{ctx.run_id}.{ctx.step_id}", b"other", writer(ctx, deliveries=5))
            raise ConnectionError("half-way")
        try:
            ctx.use(CHECKPOINTS).resumed_from  # noqa: B018 - it raises
        except StaleAttemptError as error:
            seen.append(error)

    async with bench(ground, handler) as at:
        await at.run()
    assert len(seen) == 1
