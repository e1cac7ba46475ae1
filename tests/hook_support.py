"""What the tests of hooks share: plugins made of functions, and one task run by a worker."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from dagnats_worker import Plugin, TaskContext, WorkerConfig, hookimpl
from dagnats_worker.testing import TaskResult, WorkerHarness

SOON = timedelta(seconds=3)
BOUND_S = 10
REDELIVER_AFTER = WorkerConfig().redeliver_after
MANAGED = {"workflow_name": "hello"}
HISTORY, TASKS, DEAD = "WORKFLOW_HISTORY", "TASK_QUEUES", "DEAD_LETTERS"

Notes = list[str]


async def shout(ctx: TaskContext) -> str:
    return "HELLO"


async def run(handler: Any, *plugins: Plugin[Any], **fields: Any) -> TaskResult:
    """Run one task, and another one to see that the worker lives on."""
    async with WorkerHarness({"shout": handler}, plugins=plugins) as harness:
        result = await harness.run("shout", **fields)
        await harness.run("shout", **fields)
    return result


def types(result: TaskResult) -> list[str]:
    return [event.type for event in result.events]


def plugin_with(plugin_name: str = "one", /, **hooks: Any) -> Plugin[None]:
    """A plugin with these hooks, which are functions without ``self``."""
    plugin: Plugin[None] = type("One", (Plugin,), {"name": plugin_name})()
    for hook, function in hooks.items():
        setattr(plugin, hook, hookimpl(function))
    return plugin


def raising(error: BaseException) -> Callable[..., Any]:
    async def hook() -> None:
        raise error

    return hook


async def fails(ctx: TaskContext) -> None:
    raise ValueError("no luck")


async def never(ctx: TaskContext) -> None:
    pytest.fail("this handler is not to be run")


class Diary:
    """Scopes of two plugins that note who is left with what."""

    def __init__(self) -> None:
        self.lines: Notes = []

    def plugins(self, hook: str = "task_scope") -> list[Plugin[None]]:
        return [self._plugin("first", hook), self._plugin("second", hook)]

    def _plugin(self, plugin_name: str, hook: str) -> Plugin[None]:
        @asynccontextmanager
        async def scope(ctx: TaskContext) -> AsyncIterator[None]:
            self.lines.append(f"{plugin_name} in")
            try:
                yield
            except BaseException as error:
                self.lines.append(f"{plugin_name} out {type(error).__name__}")
                raise
            else:
                self.lines.append(f"{plugin_name} out")
            finally:
                self.lines.append(type(ctx.outcome).__name__)

        return plugin_with(plugin_name, **{hook: scope})


def left(error: str, outcome: str) -> Notes:
    """What the two note where both are entered and left, in reverse."""
    out = f"out {error}".rstrip()
    return ["first in", "second in", f"second {out}", outcome, f"first {out}", outcome]


# What runs in a child process has to be found there by its name.

carried: contextvars.ContextVar[str] = contextvars.ContextVar("carried", default="unset")


class Carrying(Plugin[str]):
    """Carries the run's id, and its settings, into the child of a process handler."""

    name: ClassVar[str] = "carrying"

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        ctx.carrier["run"] = ctx.run_id

    @hookimpl
    @contextmanager
    def child_scope(self, carrier: dict[str, str]) -> Iterator[None]:
        token = carried.set(f"{self.settings} {carrier['run']}")
        yield
        carried.reset(token)


def what_was_carried(fails: bool) -> str:  # noqa: FBT001 - a handler's input
    if fails:
        raise ValueError(f"carried {carried.get()}")
    return carried.get()
