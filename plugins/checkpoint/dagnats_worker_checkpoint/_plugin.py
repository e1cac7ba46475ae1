"""The plugin: provides checkpoints, reads ahead what a redelivered task left, and cleans up."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from dagnats_worker import (
    CHECKPOINTS,
    Completed,
    Continued,
    Failed,
    KeyValue,
    KeyValueError,
    Outcome,
    Plugin,
    TaskContext,
    hookimpl,
)
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_checkpoint._errors import StaleAttemptError
from dagnats_worker_checkpoint._place import Place
from dagnats_worker_checkpoint._settings import PROTOCOL_BUCKET, CheckpointSettings
from dagnats_worker_checkpoint._store import StepCheckpoint, has_begun_before

logger = logging.getLogger("dagnats_worker_checkpoint")

PROBE = "no-such-run"
"""A key that nobody writes: run ids are followed by a step id."""


class CheckpointPlugin(Plugin[CheckpointSettings]):
    """Lets a step save its state, pause, and go on from there when it is started again."""

    name = "checkpoint"
    settings_type = CheckpointSettings
    provides = (CHECKPOINTS,)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        place = await _opened(worker, self.settings)
        worker.provide(CHECKPOINTS, lambda ctx: StepCheckpoint(ctx, place))
        yield

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        """Read the checkpoint of a task that may have paused; a first delivery costs nothing."""
        if has_begun_before(ctx):
            await _checkpoint_of(ctx).look()

    @hookimpl
    async def on_complete(self, ctx: TaskContext, outcome: Outcome) -> None:
        """Clean up after an outcome that is stored; what is to be tried again is left alone."""
        match outcome:
            case Completed() | Failed(failure_type="non_retriable"):
                final = True
            case Continued():
                final = False
            case _:
                return
        checkpoint = _checkpoint_of(ctx)
        try:
            if final and self.settings.after_completion != "keep":
                if checkpoint.may_exist:
                    await checkpoint.remove()
            elif checkpoint.is_paused:
                await checkpoint.end_pause()
        except StaleAttemptError as error:
            ctx.log.debug("%s", error)  # the next turn of a loop has begun
        except KeyValueError as error:
            ctx.log.warning("the checkpoint of %s stays as it is: %s", ctx.task_id, error)


async def _opened(worker: WorkerFacade, settings: CheckpointSettings) -> Place:
    expiring: KeyValue | None = None
    if settings.after_completion == "expire":
        expiring = await worker.create_kv(settings.expiring_bucket, ttl=settings.expire_after)
    return Place(
        settings.bucket,
        await _bucket(worker, settings.bucket),
        expiring,
        size_max=lambda: worker.max_payload,
        retry_for=settings.retry_for,
    )


async def _bucket(worker: WorkerFacade, name: str) -> KeyValue:
    """The bucket; a missing one is an error only where somebody uses it, as with Go workers."""
    if name != PROTOCOL_BUCKET:
        return await worker.create_kv(name)
    kv = worker.kv(name)
    try:
        await kv.get(PROBE)
    except KeyValueError as error:
        logger.warning("checkpoints cannot be saved or loaded now: %s", error)
    return kv


def _checkpoint_of(ctx: TaskContext) -> StepCheckpoint:
    return cast("StepCheckpoint", ctx.use(CHECKPOINTS))
