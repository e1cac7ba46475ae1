"""What a harness sees from inside its worker."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dagnats_worker._context import TaskContext
from dagnats_worker._hook_calls import Member
from dagnats_worker._outcome import Failed, Outcome
from dagnats_worker._plugins import Hooks
from dagnats_worker._protocol import decode_task
from dagnats_worker._transport import Transport
from dagnats_worker._worker import Worker
from dagnats_worker.errors import DecodeError
from dagnats_worker.hookspecs import Plugin, hookimpl
from dagnats_worker.testing._stream import StoredMessage


@dataclass(slots=True)
class Observation:
    """What happened within one delivery."""

    step_id: str = ""
    outcome: Outcome | None = None
    failure: Failed | None = None


class Observer(Plugin[None]):
    """Sees, from inside the worker, what is not published: the error of a task that is retried."""

    name = "harness"

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str, int], Observation] = {}

    def take(self, message: StoredMessage) -> Observation:
        """What happened to the task of a message since this was asked last."""
        try:
            task = decode_task(message.data)
        except DecodeError:
            return Observation()
        return self._seen.pop(
            (task.run_id, task.step_id, task.iteration), Observation(task.step_id)
        )

    @hookimpl
    @asynccontextmanager
    async def task_scope(self, ctx: TaskContext) -> AsyncIterator[None]:
        observation = self._seen[_key(ctx)] = Observation(ctx.step_id)
        try:
            yield
        finally:
            observation.outcome = ctx.outcome
            if observation.failure is None and isinstance(ctx.outcome, Failed):
                observation.failure = ctx.outcome

    @hookimpl
    async def on_error(self, ctx: TaskContext, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self._seen[_key(ctx)].failure = outcome


def _key(ctx: TaskContext) -> tuple[str, str, int]:
    return ctx.run_id, ctx.step_id, ctx.iteration


def observed(worker: Worker, transport: Transport, observer: Observer) -> Worker:
    """A worker that serves the same handlers with the same plugins, from another connection."""
    copied = copy.copy(worker)
    copied._connection = transport  # noqa: SLF001 - a worker has one connection for life
    copied._running = None  # noqa: SLF001 - a worker is started once; the copy has not been
    members = [copy.copy(member) for member in worker._hooks.members]  # noqa: SLF001 - each counts its failures
    copied._loaded = Hooks(members=[Member(observer, required=True), *members])  # noqa: SLF001 - see Observer
    return copied
