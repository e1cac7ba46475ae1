"""What a handler saves is there when its step is started again, and pauses keep it.

Method: a worker with the plugin runs tasks; what handlers load, and what the bucket then holds,
read by hand. Real: the plugin and the worker, and the nats-server of the ``server`` variant. Fake:
the in-memory server of the other; Go workers, whose writes are made by hand.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from checkpoint_support import SOON, Bench, Ground, MemoryGround, bench
from support import eventually

from dagnats_worker import (
    CHECKPOINTS,
    Completed,
    NonRetryableError,
    SyncTaskContext,
    TaskContext,
    TaskFailedError,
    UsageError,
)
from dagnats_worker_checkpoint import CheckpointSettings, CheckpointTooLargeError

GO_MARKER = b'{"pause_resume":"wait-for-human"}'
STATES: list[Any] = [
    {"offset": 120},
    b"\x00\xff not JSON",
    b"",
    None,
    {"pause_resume": "not a pause"},
    {"pause_resume": "not a pause", "user_state": 1},
]


def wire(state: Any) -> bytes:
    return state if isinstance(state, bytes) else json.dumps(state, separators=(",", ":")).encode()


# ------------------------------------------------------------------------- states


@pytest.mark.parametrize("state", STATES, ids=repr)
async def test_state_is_there_when_the_step_is_tried_again(ground: Ground, state: Any) -> None:
    loaded: list[bytes | None] = []

    async def handler(ctx: TaskContext) -> None:
        loaded.append(await ctx.load_checkpoint())
        if ctx.attempt == 1:
            await ctx.checkpoint(state)
            raise ConnectionError("half-way")

    async with bench(ground, handler) as at:
        await at.run()
        stored = await at.stored()
    assert loaded == [None, wire(state)]
    assert stored is not None
    assert stored.value == wire(state)


async def test_state_is_saved_again_and_again(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        for number in range(5):
            await ctx.checkpoint(number)
        return json.loads(await ctx.load_checkpoint() or b"")

    async with bench(ground, handler) as at:
        assert await at.run() == 4


async def test_states_saved_side_by_side_are_saved_one_after_the_other(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        await asyncio.gather(*(ctx.checkpoint(number) for number in range(10)))
        return json.loads(await ctx.load_checkpoint() or b"")

    async with bench(ground, handler) as at:
        assert await at.run() == 9


async def test_every_step_has_a_state_of_its_own(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        before = await ctx.load_checkpoint()
        await ctx.checkpoint(ctx.step_id)
        return [before is None, ctx.step_id]

    async with bench(ground, handler) as at:
        steps = ["square.map.0", "square.map.1"]
        runs = [
            await at.client.submit(at.task_type, run_id=at.run_id, step_id=step) for step in steps
        ]
        assert [await run.result() for run in runs] == [[True, step] for step in steps]
        for step in steps:
            stored = await ground.stored(f"{at.run_id}.{step}")
            assert stored is not None
            assert stored.value == json.dumps(step).encode()


async def test_turns_of_a_loop_share_the_state(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        turns = json.loads(await ctx.load_checkpoint() or b"[]")
        turns.append(ctx.iteration)
        if len(turns) == 3:
            return turns
        await ctx.checkpoint(turns)
        ctx.continue_()
        return None

    async with bench(ground, handler) as at:
        assert await at.run() == [0, 1, 2]


async def test_state_of_a_go_worker_is_loaded(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        return json.loads(await ctx.load_checkpoint() or b"null")

    async with bench(ground, handler) as at:
        await ground.put(at.key, b'{"offset":120}')
        assert await at.run() == {"offset": 120}


async def test_blocking_handler_saves_loads_and_pauses(ground: Ground) -> None:
    def handler(ctx: SyncTaskContext) -> Any:
        state = ctx.load_checkpoint()
        if state is None:
            ctx.checkpoint({"half": True})
            ctx.pause("wait", SOON)
            return None
        return [json.loads(state), ctx.use(CHECKPOINTS).resumed_from]

    async with bench(ground, handler) as at:
        assert await at.run() == [{"half": True}, "wait"]


async def test_state_that_is_not_json_is_an_error_at_the_call(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(object())

    async with bench(ground, handler) as at:
        with pytest.raises(TaskFailedError, match="cannot be JSON"):
            await at.run()
        assert await at.stored() is None


async def test_step_that_cannot_be_a_key_says_so(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)

    async with bench(ground, handler) as at:
        run = await at.client.submit(at.task_type, step_id="step.ä")
        with pytest.raises(TaskFailedError, match=r"step\.ä' cannot be a key of a bucket"):
            await run.result()


async def test_state_that_is_too_large_is_refused_with_both_sizes(ground: Ground) -> None:
    async def handler(ctx: TaskContext, size: int) -> str:
        await ctx.checkpoint(b"x" * size)
        return "saved"

    async with bench(ground, handler) as at:
        with pytest.raises(TaskFailedError, match=r"2097152 bytes.* max_payload is 1048576 bytes"):
            await at.run(2 * 1024 * 1024)
        assert await at.stored() is None
        fits = await at.client.submit(at.task_type, 1024 * 1024 - 1024)
        assert await fits.result() == "saved", "the connection is still there"


async def test_largest_state_that_is_not_refused_is_taken(ground: Ground) -> None:
    """Our count of a message's bytes is no smaller than the server's."""

    async def handler(ctx: TaskContext) -> int:
        size = 1024 * 1024
        while True:
            try:
                await ctx.checkpoint(b"x" * size)
            except CheckpointTooLargeError as error:
                size -= error.size - error.size_max
            else:
                return size

    async with bench(ground, handler) as at:
        size = await at.run()
        stored = await at.stored()
    assert stored is not None
    assert len(stored.value) == size > 1024 * 1024 - 512


# ------------------------------------------------------------------------- pauses


@pytest.mark.parametrize("state", STATES, ids=repr)
async def test_pause_keeps_the_state(ground: Ground, state: Any) -> None:
    seen: list[Any] = []

    async def handler(ctx: TaskContext) -> None:
        saved = ctx.use(CHECKPOINTS)
        seen.append((saved.resumed_from, await ctx.load_checkpoint()))
        if saved.resumed_from is None:
            await ctx.checkpoint(state)
            await ctx.pause("wait", SOON)

    async with bench(ground, handler) as at:
        await at.run()
        await at.idle()
        stored = await at.stored()
    assert seen == [(None, None), ("wait", wire(state))]
    assert stored is not None
    assert stored.value == wire(state), "the marker is gone with the end of the step"


async def test_pause_reads_as_a_pause_to_a_go_worker(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> None:
        if ctx.deliveries == 1:
            await ctx.checkpoint({"offset": 120})
            await ctx.pause("wait-for-human", timedelta(hours=1))

    async with bench(ground, handler) as at:
        await at.submit()

        async def marked() -> Any:
            stored = await at.stored()
            return stored and b"pause_resume" in stored.value

        await eventually(marked)
        stored = await at.stored()
    assert stored is not None
    assert json.loads(stored.value)["pause_resume"] == "wait-for-human"


async def test_pause_without_a_state_leaves_nothing_behind(ground: Ground) -> None:
    seen: list[Any] = []

    async def handler(ctx: TaskContext) -> None:
        seen.append((ctx.use(CHECKPOINTS).resumed_from, await ctx.load_checkpoint()))
        if ctx.deliveries == 1:
            await ctx.pause("wait", SOON)

    async with bench(ground, handler) as at:
        await at.run()
        await at.idle()
        stored = await at.stored()
    assert seen == [(None, None), ("wait", None)]
    assert stored is not None
    assert stored.deleted


async def test_pauses_follow_each_other(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        match ctx.use(CHECKPOINTS).resumed_from:
            case None:
                await ctx.checkpoint("saved once")
                await ctx.pause("first", SOON)
            case "first":
                await ctx.pause("second", SOON)
            case name:
                return [name, json.loads(await ctx.load_checkpoint() or b""), ctx.attempt]
        return None

    async with bench(ground, handler) as at:
        assert await at.run() == ["second", "saved once", 1]


async def test_pause_stays_until_something_is_saved_after_it(ground: Ground) -> None:
    seen: list[str | None] = []

    async def handler(ctx: TaskContext) -> None:
        seen.append(ctx.use(CHECKPOINTS).resumed_from)
        match len(seen):
            case 1:
                await ctx.pause("wait", SOON)
            case 2:
                raise ConnectionError("before anything was saved")
            case 3:
                await ctx.checkpoint("after the pause")
                raise ConnectionError("after something was saved")

    async with bench(ground, handler) as at:
        await at.run()
    assert seen == [None, "wait", "wait", None]


async def test_state_that_is_saved_after_the_pause_keeps_it(ground: Ground) -> None:
    """Else the handler would find no pause when it comes again, and pause for ever."""

    async def handler(ctx: TaskContext) -> Any:
        if ctx.use(CHECKPOINTS).resumed_from != "wait":
            await ctx.pause("wait", SOON)
            await ctx.checkpoint("after the pause")
            return None
        return json.loads(await ctx.load_checkpoint() or b"null")

    async with bench(ground, handler) as at:
        assert await at.run() == "after the pause"


async def test_next_turn_of_a_loop_has_not_paused(ground: Ground) -> None:
    seen: list[Any] = []

    async def handler(ctx: TaskContext) -> None:
        await ctx.load_checkpoint()
        seen.append((ctx.iteration, ctx.use(CHECKPOINTS).resumed_from))
        if len(seen) == 1:
            await ctx.pause("wait", SOON)
        elif len(seen) == 2:
            ctx.continue_()

    async with bench(ground, handler) as at:
        await at.run()
    assert seen == [(0, None), (0, "wait"), (1, None)]


async def test_marker_of_a_go_worker_is_a_pause(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> Any:
        if ctx.deliveries == 1:
            await ground.put(f"{ctx.run_id}.{ctx.step_id}", GO_MARKER)
            raise ConnectionError("the Go worker goes on")
        return [ctx.use(CHECKPOINTS).resumed_from, await ctx.load_checkpoint()]

    async with bench(ground, handler) as at:
        assert await at.run() == ["wait-for-human", None]


async def test_pause_that_is_not_the_outcome_writes_nothing(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint("saved")
        ctx.complete("done")
        with pytest.raises(UsageError, match="has the outcome Completed already"):
            await ctx.pause("wait", SOON)
        assert ctx.outcome == Completed(b'"done"')

    async with bench(ground, handler) as at:
        assert await at.run() == "done"
        stored = await at.stored()
    assert stored is not None
    assert stored.value == b'"saved"'


@pytest.mark.parametrize(
    ("name", "duration", "error", "says"),
    [
        ("", SOON, ValueError, "name is empty"),
        (7, SOON, TypeError, "name is a text, got 7"),
        ("wait", timedelta(0), ValueError, "longer than zero"),
        ("wait", 5, TypeError, "duration is a timedelta, got 5"),
    ],
)
async def test_pause_that_makes_no_sense_is_an_error_at_the_call(
    name: Any, duration: Any, error: type[Exception], says: str
) -> None:
    async def handler(ctx: TaskContext) -> None:
        with pytest.raises(error, match=says):
            await ctx.pause(name, duration)

    async with bench(MemoryGround(), handler) as at:
        await at.run()
        assert await at.stored() is None


# ------------------------------------------------------------------------- after the end


async def ends_for_good(ctx: TaskContext) -> None:
    await ctx.checkpoint({"offset": 120})
    if ctx.json() == "fail":
        raise NonRetryableError("no use")


async def run_out(at: Bench, value: str) -> None:
    if value == "fail":
        with pytest.raises(TaskFailedError, match="no use"):
            await at.run(value)
    else:
        await at.run(value)
    await at.idle()


@pytest.mark.parametrize("ends", ["complete", "fail"])
async def test_checkpoint_is_kept_where_nothing_is_said(ground: Ground, ends: str) -> None:
    async with bench(ground, ends_for_good) as at:
        await run_out(at, ends)
        stored = await at.stored()
    assert stored is not None
    assert stored.value == b'{"offset":120}'


@pytest.mark.parametrize("ends", ["complete", "fail"])
async def test_checkpoint_is_deleted_after_the_end(ground: Ground, ends: str) -> None:
    async with bench(ground, ends_for_good, CheckpointSettings(after_completion="delete")) as at:
        await run_out(at, ends)
        stored = await at.stored()
    assert stored is not None
    assert stored.deleted


async def test_checkpoint_of_an_earlier_attempt_is_deleted_too(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> None:
        if ctx.attempt == 1:
            await ctx.checkpoint(1)
            raise ConnectionError("half-way")

    async with bench(ground, handler, CheckpointSettings(after_completion="delete")) as at:
        await at.run()
        await at.idle()
        stored = await at.stored()
    assert stored is not None
    assert stored.deleted


@pytest.mark.parametrize("cleanup", ["delete", "expire"])
async def test_checkpoint_is_there_until_the_end(ground: Ground, cleanup: Any) -> None:
    """Neither a retry, nor a pause, nor the turn of a loop is an end."""
    seen: list[bytes | None] = []

    async def handler(ctx: TaskContext) -> None:
        seen.append(await ctx.load_checkpoint())
        await ctx.checkpoint(len(seen))
        match len(seen):
            case 1:
                raise ConnectionError("half-way")
            case 2:
                await ctx.pause("wait", SOON)
            case 3:
                ctx.continue_()

    settings = CheckpointSettings(after_completion=cleanup)
    async with bench(ground, handler, settings) as at:
        await at.run()
        await at.idle()
        stored = await at.stored()
    assert seen == [None, b"1", b"2", b"3"]
    assert stored is not None
    assert stored.deleted


async def test_failure_of_a_managed_run_that_may_be_retried_keeps_it(ground: Ground) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)
        raise ConnectionError("the engine decides")

    async with bench(ground, handler, CheckpointSettings(after_completion="delete")) as at:
        await dispatch(at, workflow_name="hello")
        await at.idle()
        stored = await at.stored()
    assert stored is not None
    assert stored.value == b"1"


async def test_expiring_checkpoint_moves_and_is_found_by_a_replay(ground: Ground) -> None:
    loaded: list[bytes | None] = []

    async def handler(ctx: TaskContext) -> None:
        loaded.append(await ctx.load_checkpoint())
        await ctx.checkpoint({"offset": 120})
        raise NonRetryableError("no use")

    settings = CheckpointSettings(after_completion="expire", expire_after=timedelta(hours=2))
    async with bench(ground, handler, settings) as at:
        await run_out(at, "fail")
        stored = await at.stored()
        moved = await at.stored(settings.expiring_bucket)
        await dispatch(at, {"Dagnats-Dlq-Attempts": "1"}, step_ended=2)
    assert settings.expiring_bucket == "checkpoints_expiring_7200s"
    assert stored is not None
    assert stored.deleted
    assert moved is not None
    assert moved.value == b'{"offset":120}'
    assert loaded == [None, b'{"offset":120}']


async def dispatch(
    at: Bench, headers: dict[str, str] | None = None, step_ended: int = 1, **fields: Any
) -> None:
    """Dispatch the step as the engine does, and wait until it has ended so many times."""
    body = {"task_id": at.key, "run_id": at.run_id, "step_id": "step", **fields}
    connection = at.client.transport
    subject = f"task.{at.task_type}.{at.run_id}"
    await (await connection.publish(subject, json.dumps(body).encode(), headers or {}))

    async def ended() -> bool:
        events = await connection.history(at.run_id, limit=100)
        kinds = [json.loads(event.data)["type"] for event in events]
        return kinds.count("step.failed") + kinds.count("step.completed") >= step_ended

    await eventually(ended, what="the step has ended")
