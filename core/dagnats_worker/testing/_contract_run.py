"""One worker with one plugin, run for a contract, and what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from dagnats_worker._client import Client
from dagnats_worker._config import WorkerConfig
from dagnats_worker._context import TaskContext
from dagnats_worker._protocol import task_subject
from dagnats_worker._run import Run
from dagnats_worker._transport import Transport
from dagnats_worker._worker import Worker
from dagnats_worker.hookspecs import Capability, Plugin
from dagnats_worker.testing._contract_ground import Ground, until
from dagnats_worker.testing._probe import Probe

WITHIN_S = 20.0
"""Only a failure waits for so long."""

LOOK_EVERY_S = 0.01

TASKS = "TASK_QUEUES"
TASK_TYPE = "contract"
OUTCOMES = ("step.completed", "step.failed", "step.continue")
CONFIG = WorkerConfig(
    redeliver_after=timedelta(milliseconds=100),
    publish_timeout=timedelta(seconds=1),
    publish_attempts=2,
    drain_timeout=timedelta(seconds=5),
    cancel_watch_after=timedelta(milliseconds=50),
    cancel_poll_every=timedelta(milliseconds=100),
)
LOOPS_OWN_THREADS = "asyncio_"
PLUGIN_LOGGER = "dagnats_worker.plugins"

Handler = Callable[[TaskContext], Awaitable[Any]]


@dataclass(slots=True)
class Case:
    """What a contract says of the task that it runs."""

    make: Callable[[], Plugin[Any]]
    task_input: Any
    task_headers: Mapping[str, str]
    task_options: Mapping[str, Any]


@dataclass(slots=True)
class Serving:
    """A worker that runs, and what is known of its plugin."""

    worker: Worker
    probe: Probe
    transport: Transport
    client: Client
    case: Case
    logged: list[str] = field(default_factory=list)

    @property
    def provided(self) -> set[Capability[Any]]:
        """The capabilities that the plugin provides."""
        running = self.worker._running  # noqa: SLF001 - nobody but the core asks for them
        assert running is not None, "it was started"
        return set(running.facade.capabilities)

    async def submit(self) -> Run:
        """Put one task into the queue."""
        return await self.client.submit(
            TASK_TYPE, self.case.task_input, headers=self.case.task_headers
        )

    async def run_one(self) -> Run:
        """Run one task until its message is acked."""
        run = await self.submit()
        await self.acked(run)
        return run

    async def acked(self, run: Run, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until the message of a task has gone from its queue."""
        subject = task_subject(TASK_TYPE, run.run_id, None)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WITHIN_S
        while subject in await self.client.transport.newest(TASKS, [subject]):
            if loop.time() > deadline:
                raise AssertionError(await self._stuck(run))
            meanwhile()
            await asyncio.sleep(LOOK_EVERY_S)

    async def begun(self, run: Run) -> None:
        """Wait until the start of a task is stored."""
        async with asyncio.timeout(WITHIN_S):
            async for event in run.events():
                if event.type == "step.started":
                    return

    async def _stuck(self, run: Run) -> str:
        seen = ", ".join([event.type async for event in run.events(follow=False)])
        return (
            f"a task is not done within {WITHIN_S:g} s; its events: {seen or 'none'}. Where the "
            "plugin holds tasks back on purpose, give the contract settings, task_input, "
            f"task_headers or task_options that let one through.{self.complaints()}"
        )

    async def outcomes(self, run: Run) -> list[str]:
        """How the task has ended, once for each time that this was published."""
        types = [event.type async for event in run.events(follow=False)]
        return [one for one in types if one in OUTCOMES]

    def complaints(self) -> str:
        """What the plugin has raised, and what was logged of it."""
        raised = [
            f"{part} raised:\n{''.join(traceback.format_exception(error))}"
            for part, error in self.probe.errors
        ]
        return "".join(f"\n{text}" for text in raised + self.logged)

    def check(self) -> None:
        """Fail where the plugin has raised something, or left a scope open."""
        left = {hook: count for hook, count in self.probe.open.items() if count}
        assert not left, f"scopes were entered and not left: {left}"
        text = self.complaints()
        assert not text, f"plugin {self.probe.plugin.name!r} failed:{text}"


@asynccontextmanager
async def serving(
    ground: Ground, case: Case, handler: Handler, plugin: Plugin[Any] | None = None, **options: Any
) -> AsyncIterator[Serving]:
    """A worker with one plugin, stopped at the end; nothing may be left behind by then."""
    left = Leftovers()
    probe = Probe(plugin or case.make())
    transport = await ground.connect()
    worker = Worker(transport, plugins=[probe.plugin], config=CONFIG)
    worker.handle(TASK_TYPE, handler, **{**case.task_options, **options})
    client_transport = await ground.connect()
    client = Client(client_transport, plugins=[case.make()], config=CONFIG)
    await client.connect()
    served = Serving(worker, probe, transport, client, case)
    with _logged(served.logged):
        try:
            await worker.start()
            yield served
        finally:
            await worker.stop()
            await client.close()
            await client_transport.close()
    await left.nothing()


class Leftovers:
    """What is there now, and what has come on top of it later."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())

    async def nothing(self) -> None:
        """Fail where a task or a thread was left behind."""
        await until(lambda: not self._new(), WITHIN_S, lambda: f"left behind: {self._new()}")

    def _new(self) -> list[str]:
        tasks = [
            f"the asyncio task {task.get_name()!r} ({task.get_coro()!r})"
            for task in asyncio.all_tasks() - self._tasks
        ]
        threads = [
            f"the thread {thread.name!r}"
            for thread in set(threading.enumerate()) - self._threads
            if not thread.name.startswith(LOOPS_OWN_THREADS)
        ]
        return tasks + threads


class _logged(logging.Handler):  # noqa: N801 - used like a function
    """Keeps what is logged of plugins as errors, while the block lasts."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(logging.Formatter().format(record))

    def __enter__(self) -> None:
        logging.getLogger(PLUGIN_LOGGER).addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger(PLUGIN_LOGGER).removeHandler(self)
