"""What tests of checkpoints share: either server, and what its bucket holds, read by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from support import eventually, unique
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import Client, Retry, Run, Worker, WorkerConfig
from dagnats_worker.testing import MemoryServer, MemoryTransport
from dagnats_worker_checkpoint import CheckpointPlugin, CheckpointSettings

BOUND = timedelta(seconds=30)
QUICK = WorkerConfig(
    redeliver_after=timedelta(milliseconds=50),
    publish_timeout=timedelta(seconds=2),
    request_timeout=timedelta(seconds=2),
)
SOON = timedelta(milliseconds=50)
AT_ONCE = Retry(stop=stop_after_attempt(5), wait=wait_fixed(0.02))


@dataclass(frozen=True)
class Stored:
    """The newest message under a key."""

    value: bytes
    headers: dict[str, str]

    @property
    def deleted(self) -> bool:
        return self.headers.get("KV-Operation") == "DEL"


class Ground(Protocol):
    """A server, real or in memory."""

    def connection(self) -> Any:
        """For one worker or one client."""
        ...

    async def stored(self, key: str, bucket: str = "checkpoints") -> Stored | None: ...

    async def put(self, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Write as a Go worker, or anybody else, does."""
        ...


class ServerGround:
    """A real nats-server that other tests use too."""

    def __init__(self, url: str, js: JetStreamContext) -> None:
        self.url = url
        self.js = js

    def connection(self) -> str:
        return self.url

    async def stored(self, key: str, bucket: str = "checkpoints") -> Stored | None:
        try:
            found = await self.js.get_last_msg(f"KV_{bucket}", f"$KV.{bucket}.{key}")
        except NotFoundError:
            return None
        return Stored(found.data or b"", dict(found.headers or {}))

    async def put(self, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> None:
        await self.js.publish(f"$KV.checkpoints.{key}", value, headers=dict(headers or {}))


class MemoryGround:
    """The in-memory server."""

    def __init__(self) -> None:
        self.server = MemoryServer()

    def connection(self) -> MemoryTransport:
        return MemoryTransport(self.server)

    async def stored(self, key: str, bucket: str = "checkpoints") -> Stored | None:
        found = self.server.messages(f"KV_{bucket}", f"$KV.{bucket}.{key}")
        return Stored(found[-1].data, dict(found[-1].headers)) if found else None

    async def put(self, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.server.publish(f"$KV.checkpoints.{key}", value, dict(headers or {}))


class Bench:
    """A worker with the plugin and one handler, and a client.

    Attributes:
        run_id: Of the run that ``submit`` starts.
        key: Under which its step saves.
    """

    def __init__(self, ground: Ground, worker: Worker, client: Client, task_type: str) -> None:
        self.ground = ground
        self.worker = worker
        self.client = client
        self.task_type = task_type
        self.run_id = unique("run")
        self.key = f"{self.run_id}.step"

    async def submit(self, value: Any = None, **options: Any) -> Run:
        return await self.client.submit(
            self.task_type, value, run_id=self.run_id, step_id="step", **options
        )

    async def run(self, value: Any = None, **options: Any) -> Any:
        """Submit a task and wait for its result, over all retries and pauses."""
        return await (await self.submit(value, **options)).result(BOUND)

    async def stored(self, bucket: str = "checkpoints") -> Stored | None:
        return await self.ground.stored(self.key, bucket)

    async def idle(self) -> None:
        """Wait until nothing is handled, so that what follows an outcome is done too."""
        await eventually(lambda: not self.worker.handling, what="the worker is idle")


@asynccontextmanager
async def bench(
    ground: Ground,
    handler: Callable[..., Any],
    settings: CheckpointSettings | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    """A worker that serves one handler, until the block ends."""
    task_type = unique("t")
    plugin = CheckpointPlugin(settings or CheckpointSettings())
    worker = Worker(ground.connection(), config=QUICK, plugins=[plugin])
    worker.handle(task_type, handler, **{"retry": AT_ONCE, **options})
    async with worker, Client(ground.connection(), plugins=[]) as client:
        yield Bench(ground, worker, client, task_type)


async def once(event: asyncio.Event) -> None:
    """Wait for an event, within a bound."""
    async with asyncio.timeout(BOUND.total_seconds()):
        await event.wait()
