"""What a type checker says of checkpoints. Checked by mypy and pyright, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict, assert_type

import msgspec
import pydantic

from dagnats_worker import (
    CHECKPOINTS,
    Checkpointable,
    DagnatsError,
    SyncTaskContext,
    TaskContext,
    Worker,
)
from dagnats_worker_checkpoint import (
    Checkpoint,
    CheckpointPlugin,
    CheckpointSettings,
    CheckpointTooLargeError,
    StaleAttemptError,
    SyncCheckpoint,
)


@dataclass
class Progress:
    done: int = 0


class Row(TypedDict):
    done: int


class Struct(msgspec.Struct):
    done: int


class Model(pydantic.BaseModel):
    done: int


async def what_is_loaded_is_the_model(ctx: TaskContext) -> None:
    checkpoint = Checkpoint(ctx, Progress)
    assert_type(checkpoint, Checkpoint[Progress])
    assert_type(await checkpoint.load(), Progress | None)
    assert_type(await checkpoint.load(default=Progress()), Progress)
    assert_type(await checkpoint.load(default="none"), Progress | str)
    assert_type(await checkpoint.save(Progress(1)), None)
    assert_type(checkpoint.resumed_from, str | None)
    await checkpoint.pause("wait", timedelta(seconds=1))
    await checkpoint.save(1)  # type: ignore[arg-type]  # a Progress
    await checkpoint.pause("wait", 1)  # type: ignore[arg-type]  # a timedelta
    checkpoint.load()  # type: ignore[unused-coroutine]  # nobody waits for it


async def every_kind_of_model_is_one(ctx: TaskContext) -> None:
    assert_type(await Checkpoint(ctx, int).load(default=0), int)
    assert_type(await Checkpoint(ctx, bytes).load(), bytes | None)
    assert_type(await Checkpoint(ctx, list[Progress]).load(), list[Progress] | None)
    assert_type(await Checkpoint(ctx, dict[str, int]).load(), dict[str, int] | None)
    assert_type(await Checkpoint(ctx, Row).load(), Row | None)
    assert_type(await Checkpoint(ctx, Struct).load(), Struct | None)
    assert_type(await Checkpoint(ctx, Model).load(), Model | None)


def blocking_handler_has_a_view_that_blocks(ctx: SyncTaskContext) -> None:
    checkpoint = SyncCheckpoint(ctx, Progress)
    assert_type(checkpoint.load(), Progress | None)
    assert_type(checkpoint.load(default=Progress()), Progress)
    checkpoint.save(Progress(1))
    checkpoint.pause("wait", timedelta(seconds=1))
    assert_type(checkpoint.resumed_from, str | None)
    Checkpoint(ctx, Progress)  # type: ignore[arg-type]  # the async one


async def capability_has_what_the_context_has(ctx: TaskContext) -> None:
    saved = ctx.use(CHECKPOINTS)
    assert_type(saved, Checkpointable)
    assert_type(saved.resumed_from, str | None)
    assert_type(await saved.load_checkpoint(), bytes | None)
    assert_type(await ctx.load_checkpoint(), bytes | None)
    await ctx.checkpoint({"any": "thing"})
    saved.resumed_from = "elsewhere"  # type: ignore[misc]  # to be read


def plugin_is_configured_in_code() -> None:
    Worker(plugins=[CheckpointPlugin()])
    Worker(plugins=[CheckpointPlugin(CheckpointSettings(after_completion="delete"))])
    CheckpointSettings(after_completion="burn")  # type: ignore[arg-type]  # not one of the three
    CheckpointSettings(expire_after=7)  # type: ignore[arg-type]  # a timedelta
    CheckpointPlugin({"bucket": "own"})  # type: ignore[arg-type]  # a CheckpointSettings


def errors_are_of_the_family(stale: StaleAttemptError, large: CheckpointTooLargeError) -> Any:
    error: DagnatsError = stale
    assert_type(large.size, int)
    assert_type(large.size_max, int)
    return error
