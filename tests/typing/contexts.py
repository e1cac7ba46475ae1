"""What a type checker says of the context of a handler. Checked by mypy and pyright, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol, assert_type

from dagnats_worker import (
    BaseContext,
    Capability,
    Checkpointable,
    Completed,
    Continued,
    Failed,
    Outcome,
    Paused,
    Released,
    Signaler,
    SyncTaskContext,
    TaskContext,
)
from dagnats_worker.hookspecs import CHECKPOINTS, SIGNALS


class Counting(Protocol):
    """What a plugin provides."""

    def count(self, step: int) -> int: ...


class Counter:
    def count(self, step: int) -> int:
        return step


COUNTER: Capability[Counting] = Capability("counter", install="dagnats-counter")
NUMBER: Capability[int] = Capability("number", install="dagnats-number")


def keys_are_typed(ctx: BaseContext) -> None:
    assert_type(ctx.use(CHECKPOINTS), Checkpointable)
    assert_type(ctx.use(SIGNALS), Signaler)
    assert_type(ctx.use(COUNTER), Counting)
    assert_type(ctx.use(NUMBER), int)
    assert_type(ctx.use(COUNTER).count(1), int)
    ctx.use(COUNTER).count("1")  # type: ignore[arg-type]  # not a number
    ctx.use(COUNTER).reset()  # type: ignore[attr-defined]  # not in the protocol
    ctx.use("counter")  # type: ignore[arg-type]  # a key, not a name
    ctx.use(Counting)  # type: ignore[arg-type]  # a key, not the protocol itself
    text: str = ctx.use(NUMBER)  # type: ignore[assignment]  # it is a number
    del text


def key_needs_to_know_what_to_install() -> None:
    Capability("counter")  # type: ignore[call-arg]  # install is missing


async def both_contexts_know_the_task(ctx: TaskContext, blocking: SyncTaskContext) -> None:
    for either in (ctx, blocking):
        assert_type(either.run_id, str)
        assert_type(either.attempt, int)
        assert_type(either.input, bytes)
        assert_type(either.json(), Any)
        assert_type(either.metadata, Mapping[str, str])
        assert_type(either.outcome, Outcome | None)
        assert_type(either.handler_duration, timedelta | None)
        assert_type(either.carrier, dict[str, str])
    ctx.run_id = "other"  # type: ignore[misc]  # what the task is does not change
    ctx.runid  # type: ignore[attr-defined]  # noqa: B018 - misspelt on purpose


async def async_calls_are_awaited(ctx: TaskContext) -> None:
    assert_type(await ctx.load_checkpoint(), bytes | None)
    assert_type(await ctx.wait_for_signal("go", timedelta(seconds=1)), bytes)
    await ctx.checkpoint({"any": "state"})
    await ctx.pause("later", timedelta(hours=1))
    await ctx.put_stream(b"chunk")
    await ctx.heartbeat()
    await ctx.send_signal("run", "go", None)
    assert_type(ctx.cancelled, asyncio.Event)
    assert_type(ctx.sync(), SyncTaskContext)
    await ctx.pause("later", 60)  # type: ignore[arg-type]  # a timedelta, not a number
    await ctx.complete(1)  # type: ignore[func-returns-value, misc]  # records, and is no coroutine


def blocking_calls_are_not(ctx: SyncTaskContext) -> None:
    async def answer() -> int:
        return 42

    assert_type(ctx.load_checkpoint(), bytes | None)
    assert_type(ctx.wait_for_signal("go", timedelta(seconds=1)), bytes)
    assert_type(ctx.run(answer()), int)
    assert_type(ctx.cancelled, threading.Event)
    ctx.put_stream("chunk")
    ctx.heartbeat()
    ctx.pause("later", timedelta(hours=1))
    ctx.run(42)  # type: ignore[arg-type]  # nothing to await
    ctx.sync()  # type: ignore[attr-defined]  # it is the blocking one already


def outcomes_are_recorded(ctx: TaskContext) -> None:
    ctx.complete()
    ctx.complete({"any": ["json"]})
    ctx.continue_(b"1")
    ctx.fail("text")
    ctx.fail(ValueError())
    ctx.fail_permanent("text")
    ctx.fail_retry_after("busy", timedelta(seconds=3))
    ctx.record(Paused("later", timedelta(hours=1)))
    ctx.fail(404)  # type: ignore[arg-type]  # an exception or a text
    ctx.fail_retry_after("busy", 3)  # type: ignore[arg-type]  # a timedelta, not a number
    ctx.fail_retry_after("busy")  # type: ignore[call-arg]  # when?
    ctx.record("completed")  # type: ignore[arg-type]  # an outcome, not a word
    ctx.complete(output=1)  # type: ignore[call-arg]  # positional, so that None is a value


def every_outcome_has_its_case(outcome: Outcome) -> str:
    match outcome:
        case Completed(output) | Continued(output):
            return assert_type(output, bytes).decode()
        case Failed(error, failure_type, retry_after):
            assert_type(retry_after, timedelta | None)
            return f"{error} {failure_type}"
        case Paused(name, duration):
            return f"{name} {duration}"
        case Released(reason, delay):
            return f"{reason} {delay}"


def outcomes_are_frozen_and_their_words_are_known(failure: Failed) -> Failed:
    failure.error = "other"  # type: ignore[misc]  # frozen
    return Failed("text", "permanent")  # type: ignore[arg-type]  # no such failure type
