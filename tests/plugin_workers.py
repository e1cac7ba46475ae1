"""Workers with plugins of which some are required and some are not, on the in-memory server.

In code every plugin is required; that one is not is otherwise known from the configuration of those
that are installed, which takes a process of its own. Here the members are made as the loader does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from dagnats_worker import Plugin, TaskContext, Worker, WorkerConfig
from dagnats_worker._hook_calls import FAILURES_MAX_DEFAULT, Member
from dagnats_worker._plugins import Hooks
from dagnats_worker.testing import MemoryTransport, WorkerHarness

BOUND_S = 10
MANAGED = {"workflow_name": "hello"}
"""What makes a task one of a run that an engine manages: a failure is told, and not retried."""

QUICK = WorkerConfig(
    hook_timeout=timedelta(seconds=0.2),
    loop_lag_warning=timedelta(seconds=0.2),
    drain_timeout=timedelta(seconds=2),
)


async def shout(ctx: TaskContext) -> str:
    return "HELLO"


def members(
    required: Sequence[Plugin[Any]] = (),
    optional: Sequence[Plugin[Any]] = (),
    failures_max: int = FAILURES_MAX_DEFAULT,
) -> list[Member]:
    """The optional ones come first."""
    return [
        *(Member(one, required=False, failures_max=failures_max) for one in optional),
        *(Member(one, required=True, failures_max=failures_max) for one in required),
    ]


def worker_with(
    handler: Callable[..., Any] = shout,
    *,
    required: Sequence[Plugin[Any]] = (),
    optional: Sequence[Plugin[Any]] = (),
    failures_max: int = FAILURES_MAX_DEFAULT,
    config: WorkerConfig = QUICK,
    connection: Any = None,
    task_type: str = "shout",
    **options: Any,
) -> Worker:
    """A worker that has not been started."""
    worker = Worker(connection or MemoryTransport(), config=config, plugins=())
    worker._loaded = Hooks(members=members(required, optional, failures_max))
    worker.handle(task_type, handler, **options)
    return worker


@asynccontextmanager
async def serving(handler: Callable[..., Any] = shout, **more: Any) -> AsyncIterator[WorkerHarness]:
    """The same, running in a harness."""
    async with WorkerHarness(worker_with(handler, **more)) as harness:
        yield harness


def state_of(worker: Worker, plugin: str) -> str:
    """What the worker tells its plugins of one of them."""
    assert worker._running is not None
    return {one.name: one.state for one in worker._running.facade.plugins}[plugin]


def scope_of(
    *, before: Any = None, after: Any = None, notes: list[str] | None = None, name: str = ""
) -> Callable[..., Any]:
    """A scope that awaits or raises something at its beginning or its end, and notes both."""

    @asynccontextmanager
    async def scope() -> AsyncIterator[None]:
        await _act(before)
        if notes is not None:
            notes.append(f"{name} in")
        try:
            yield
        finally:
            if notes is not None:
                notes.append(f"{name} out")
        await _act(after)

    return scope


async def _act(what: Any) -> None:
    if isinstance(what, BaseException):
        raise what
    if what is not None:
        await what()
