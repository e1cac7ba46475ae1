"""What the tests of pulling, leases, drain and reconnect share: workers, consumers, a bad network.

The proxy and the worker processes are real; nothing here stands in for the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.js import JetStreamContext
from support import eventually, stored_events

from dagnats_worker import Worker, WorkerConfig
from dagnats_worker._naming import durable_name
from dagnats_worker._transport import Transport

BOUND_S = 30
"""How long a test waits for something that should happen soon; only a failure waits it out."""

QUICK = WorkerConfig(
    reconnect_wait=timedelta(milliseconds=100),
    recover_wait_max=timedelta(milliseconds=500),
    redeliver_after=timedelta(milliseconds=200),
    pull_heartbeat=timedelta(seconds=1),
    drain_timeout=timedelta(seconds=10),
    request_timeout=timedelta(seconds=2),
    publish_timeout=timedelta(seconds=2),
)


def seconds(value: float) -> timedelta:
    """A duration, short to write."""
    return timedelta(seconds=value)


def quick_worker(
    connection: str | Sequence[str] | Client | Transport, *, config: Any = None, **options: Any
) -> Worker:
    """A worker that notices trouble within a second; ``config`` is a dict of more settings."""
    return Worker(connection, config=replace(QUICK, **(config or {})), **options)


class Log:
    """What handlers have done: who started, who ended, how many at once."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.running = 0
        self.peak = 0

    @asynccontextmanager
    async def running_task(self, name: str) -> AsyncIterator[None]:
        """Around the body of a handler."""
        self.started.append(name)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            yield
        finally:
            self.running -= 1
            self.ended.append(name)

    def doubled(self) -> list[str]:
        """What was started more than once."""
        return [name for name, count in Counter(self.started).items() if count > 1]


async def consumer_info(
    source: JetStreamContext, task_type: str, group: str | None = None
) -> dict[str, Any]:
    """The durable of a task type as the server describes it; empty where there is none."""
    return await raw_consumer_info(source, "TASK_QUEUES", durable_name(task_type, group))


async def raw_consumer_info(source: JetStreamContext, stream: str, name: str) -> dict[str, Any]:
    """What CONSUMER.INFO answers; empty where there is no such consumer."""
    answer = await api(source, f"CONSUMER.INFO.{stream}.{name}")
    return {} if "error" in answer else answer


async def api(source: JetStreamContext, subject: str, body: Any = None) -> dict[str, Any]:
    """Ask JetStream's API without any library in between."""
    data = b"" if body is None else json.dumps(body).encode()
    answer = await source._nc.request(f"$JS.API.{subject}", data, timeout=5)
    parsed: dict[str, Any] = json.loads(answer.data)
    return parsed


async def queued(source: JetStreamContext, stream: str = "TASK_QUEUES") -> int:
    """How many messages the stream holds."""
    return (await source.stream_info(stream)).state.messages


async def event_types(source: JetStreamContext, run_id: str, kind: str = "") -> list[str]:
    """The types of a run's events in stored order, all or those of one kind."""
    types = [event["type"] for event in await stored_events(source, run_id)]
    return [one for one in types if one.startswith(kind)]


async def completed(source: JetStreamContext, run_id: str, within_s: float = BOUND_S) -> None:
    """Wait until the run's step is completed."""

    async def is_completed() -> bool:
        return "step.completed" in await event_types(source, run_id)

    await eventually(is_completed, within_s, what=f"{run_id} completed")


async def history_counts(source: JetStreamContext, kind: str) -> Counter[str]:
    """How many events of a type each run in the whole history has, read by an ordered consumer."""
    counts: Counter[str] = Counter()
    total = await queued(source, "WORKFLOW_HISTORY")
    if not total:
        return counts
    subscription = await source.subscribe("history.>", ordered_consumer=True)
    for _ in range(total):
        message = await subscription.next_msg(timeout=10)
        event = json.loads(message.data)
        if event["type"] == kind:
            counts[event["run_id"]] += 1
    await subscription.unsubscribe()
    return counts


class WorkerProcess:
    """A Python program of its own, followed by the lines that it prints.

    Args:
        program: Its source; ``sys.argv[1:]`` are the ``arguments``.
    """

    def __init__(self, program: str, *arguments: str, **environment: str) -> None:
        self._command = [sys.executable, "-c", program, *arguments]
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()
        self.lines: list[str] = []

    async def __aenter__(self) -> WorkerProcess:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            cwd=Path(__file__).parent,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._reader is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader
        if kind is not None:
            print(self.output)  # noqa: T201 - pytest shows it where the test has failed

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "used inside its block"
        return self._process

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def line(self, text: str, count: int = 1) -> str:
        """Wait until ``count`` lines contain the text, and return the last of them."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        def ready() -> bool:
            return len(found()) >= count or self.process.stdout.at_eof()

        try:
            async with asyncio.timeout(BOUND_S), self._news:
                await self._news.wait_for(ready)
        except TimeoutError:
            raise AssertionError(f"no line with {text!r} in:\n{self.output}") from None
        assert len(found()) >= count, f"ended without {count} x {text!r}:\n{self.output}"
        return found()[count - 1]

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Not by ``send_signal``: it looks whether the process has ended, and takes the exit code
        away from those who wait for it."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def exit_code(self, within_s: float = BOUND_S) -> int:
        """Wait for the end, and return the exit code."""
        try:
            async with asyncio.timeout(within_s):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"still runs after {within_s} s:\n{self.output}") from None


class Proxy:
    """A TCP relay in front of a server, whose network can be made bad.

    Attributes:
        swallow: Take bytes of both directions and pass none on: a half-open connection.
        delay_s: Hold every chunk back for so long, in order.
        heard: While it is clear, what clients say is held back; they hear the server all the same.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.swallow = False
        self.delay_s = 0.0
        self.accepted = 0
        self.heard = asyncio.Event()
        self.heard.set()

    @property
    def url(self) -> str:
        assert self._server is not None, "used inside its block"
        port = self._server.sockets[0].getsockname()[1]
        return f"nats://127.0.0.1:{port}"

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            self.accepted += 1
            back, upstream = await asyncio.open_connection(self._target.hostname, self._target.port)
            self._writers.add(upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._relay(reader, upstream, self.heard))
                group.create_task(self._relay(back, writer))
        except* OSError:
            pass
        finally:
            for one in (writer, upstream):
                if one is not None:
                    one.transport.abort()
                    self._writers.discard(one)
            self._tasks.discard(task)

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        may_pass: asyncio.Event | None = None,
    ) -> None:
        while data := await reader.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if may_pass is not None:
                await may_pass.wait()
            if not self.swallow:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError("one side has closed")
