"""Both transports behind one face, so that one test holds for the in-memory server and a real one.

What a test needs beside the ``Transport`` itself is here: another connection, the passing of time,
and what only an administrator does.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Protocol

from nats.aio.client import Client as NatsClient
from support import eventually

from dagnats_worker import EmbeddedServer, WorkerConfig
from dagnats_worker._jetstream.transport import connect
from dagnats_worker._protocol import ACK
from dagnats_worker._slots import Gate, Slots, WorkerSlots
from dagnats_worker._transport import ConsumerSpec, Delivery, Source, Transport
from dagnats_worker.testing import FakeClock, MemoryServer, MemoryTransport

BOUND_S = 10.0
"""Only a failure waits for so long."""

SETTLE_ROUNDS = 10

STEP = timedelta(milliseconds=50)
"""How much time passes in memory from one look to the next."""

TASKS = "TASK_QUEUES"
HISTORY = "WORKFLOW_HISTORY"


class Seam(Protocol):
    """A server, and what a test does to it."""

    config: WorkerConfig

    async def connect(self) -> Transport:
        """A connection of its own; closed after the test."""
        ...

    async def let_pass(self, duration: timedelta) -> None:
        """Let time pass; workers stay alive meanwhile."""
        ...

    async def eventually(self, predicate: Callable[[], Any], what: str = "") -> Any:
        """Wait until something is true, while time passes; returns its value."""
        ...

    async def delete_consumer(self, stream: str, name: str) -> None: ...

    async def unacked(self, stream: str, name: str) -> int: ...


class BreakableSeam(Seam, Protocol):
    """A server of the test's own, which may go away."""

    async def cut(self) -> None:
        """Lose every connection."""
        ...

    def mend(self) -> None:
        """Bring the server back, with what it had stored."""
        ...


class MemorySeam:
    """The in-memory server, with a clock that is moved instead of waited for."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.clock = FakeClock()
        self.server = MemoryServer(clock=self.clock)
        self._transports: list[MemoryTransport] = []

    async def connect(self) -> MemoryTransport:
        transport = MemoryTransport(self.server)
        self._transports.append(transport)
        return transport

    async def let_pass(self, duration: timedelta) -> None:
        self.clock.advance(duration)

    async def eventually(self, predicate: Callable[[], Any], what: str = "") -> Any:
        async def look() -> Any:
            value = predicate()
            if inspect.isawaitable(value):
                value = await value
            if not value:
                self.clock.advance(STEP)
            return value

        return await eventually(look, what=what)

    async def delete_consumer(self, stream: str, name: str) -> None:
        self.server.delete_consumer(stream, name)

    async def unacked(self, stream: str, name: str) -> int:
        return len(self.server.consumers[stream, name].pending)

    async def cut(self) -> None:
        for transport in self._transports:
            transport.drop()
        for _ in range(SETTLE_ROUNDS):
            await asyncio.sleep(0)  # readers see it before it is mended

    def mend(self) -> None:
        for transport in self._transports:
            transport.restore()

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


class ServerSeam:
    """A real nats-server, with an administrator's connection beside the transports."""

    def __init__(self, config: WorkerConfig, server: EmbeddedServer, admin: NatsClient) -> None:
        self.config = config
        self._server = server
        self._js = admin.jetstream()
        self._transports: list[Transport] = []

    async def connect(self) -> Transport:
        transport = await connect(self._server.url, self.config, name="contract")
        self._transports.append(transport)
        return transport

    async def let_pass(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())

    async def eventually(self, predicate: Callable[[], Any], what: str = "") -> Any:
        return await eventually(predicate, what=what)

    async def delete_consumer(self, stream: str, name: str) -> None:
        await self._js.delete_consumer(stream, name)

    async def unacked(self, stream: str, name: str) -> int:
        return (await self._js.consumer_info(stream, name)).num_ack_pending or 0

    async def cut(self) -> None:
        # In good order: a killed server may forget what it has delivered, and that is another test.
        os.kill(self._server.pid, signal.SIGTERM)

    def mend(self) -> None:
        self._server.restart()

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


class Reader:
    """Reads a source as a worker does, and keeps count of its slots."""

    def __init__(self, source: Source, *, concurrency: int, only_idle: bool = False) -> None:
        self.source = source
        self.worker_slots = WorkerSlots(concurrency)
        self.slots = Slots(self.worker_slots, Gate(concurrency), only_idle=only_idle)
        self.arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        self.most_held = 0
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for delivery in self.source.deliveries(self.slots):
            self.most_held = max(self.most_held, self.slots.held)
            self.arrived.put_nowait(delivery)

    async def next(self, within_s: float = BOUND_S) -> Delivery:
        """The next message that arrives."""
        async with asyncio.timeout(within_s):
            return await self.arrived.get()

    def release(self, delivery: Delivery) -> None:
        """This delivery is settled; its slot is free."""
        self.source.settled(delivery)
        self.slots.settled()

    async def close(self) -> None:
        await self.source.stop()
        async with asyncio.timeout(BOUND_S):
            await self._task
        await self.source.close()


@asynccontextmanager
async def reading(
    transport: Transport, spec: ConsumerSpec, *, concurrency: int = 8, only_idle: bool = False
) -> AsyncIterator[Reader]:
    """Read a consumer until the block ends."""
    reader = Reader(await transport.open_source(spec), concurrency=concurrency, only_idle=only_idle)
    try:
        yield reader
    finally:
        await reader.close()


async def publish(
    transport: Transport, subject: str, data: bytes = b"{}", **headers: str
) -> tuple[int, bool]:
    """Store a message; headers are written with underscores. Returns sequence and duplicate."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    stored = await (await transport.publish(subject, data, sent))
    return stored.sequence, stored.duplicate


async def submit(
    transport: Transport, task_type: str, run_id: str, *, message_id: str = "", **fields: Any
) -> None:
    """Dispatch a task as the engine does, written by hand."""
    body = {"task_id": f"{run_id}.step", "run_id": run_id, "step_id": "step", **fields}
    headers = {"Nats_Msg_Id": message_id or f"{run_id}.step.queued"}
    await publish(transport, f"task.{task_type}.{run_id}", json.dumps(body).encode(), **headers)


async def events(transport: Transport, run_id: str) -> list[dict[str, Any]]:
    """The events of a run, as plain JSON."""
    stored = await transport.history(run_id, limit=1000)
    return [json.loads(event.data) for event in stored]


def spec(task_type: str, ack_wait: timedelta | None = None) -> ConsumerSpec:
    """The durable that the workers of a task type share."""
    return ConsumerSpec(TASKS, f"workers-{task_type}", f"task.{task_type}.>", ack_wait)


async def settle_all(transport: Transport, reader: Reader, deliveries: list[Delivery]) -> None:
    """Ack these, and free their slots."""
    for delivery in deliveries:
        await transport.send(delivery.ack_subject, ACK)
        reader.release(delivery)


async def gone(transport: Transport, subject: str) -> bool:
    """Whether the queue has no task of this subject any more."""
    return subject not in await transport.newest(TASKS, [subject])
