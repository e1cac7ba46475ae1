"""Drain: what a worker does between the wish to stop and the end.

Method: a real server; workers in this process, and worker processes that get real signals. What is
left behind is looked for in the interpreter, on the client and in the server's list of connections.
Nothing is fake.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import process_handlers
import pytest
from fleet_support import (
    BOUND_S,
    Log,
    WorkerProcess,
    completed,
    consumer_info,
    event_types,
    quick_worker,
    seconds,
)
from nats.js import JetStreamContext
from support import connected, eventually, free_port, publish_task, stored_events, unique

from dagnats_worker import EmbeddedServer, Plugin, StartError, TaskContext, UsageError, hookimpl
from dagnats_worker._jetstream.provision import provision

PROGRAM = """
import asyncio, logging, sys, time
from datetime import timedelta
from pathlib import Path
import process_handlers
from dagnats_worker import TaskContext, Worker, WorkerConfig

logging.basicConfig(level=logging.INFO)
url, kind, folder, drain = sys.argv[1:]
worker = Worker(url, config=WorkerConfig(drain_timeout=timedelta(seconds=float(drain))))

@worker.task(kind, concurrency=1, ack_wait=timedelta(seconds=1))
async def handle(ctx: TaskContext) -> str:
    print("started", ctx.run_id, flush=True)
    try:
        while not Path(folder, ctx.run_id).exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        print("cancelled", ctx.run_id, flush=True)
        raise
    print("ended", ctx.run_id, flush=True)
    return ctx.worker_id

@worker.task(kind + "-thread")
def in_thread(ctx) -> str:
    print("started", ctx.run_id, flush=True)
    time.sleep(600)

worker.handle(kind + "-process", process_handlers.announce_and_hang, executor="process")

@worker.task(kind + "-blocking")
async def blocking(ctx) -> None:
    print("started", ctx.run_id, flush=True)
    time.sleep(600)

@worker.task(kind + "-stubborn")
async def stubborn(ctx) -> None:
    print("started", ctx.run_id, flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            print("will not", ctx.run_id, flush=True)

worker.run()
print("returned", flush=True)
"""


@asynccontextmanager
async def program(
    server: EmbeddedServer, kind: str, folder: Path, drain_s: float = 20
) -> AsyncIterator[WorkerProcess]:
    """The worker process above, ready to take tasks."""
    async with WorkerProcess(PROGRAM, server.url, kind, str(folder), str(drain_s)) as process:
        async with connected(server.url) as client:

            async def pulls() -> bool:
                info = await consumer_info(client.jetstream(), f"{kind}-stubborn")
                return bool(info.get("num_waiting"))

            await eventually(pulls, BOUND_S)
        yield process


async def signalled_until_it_ends(process: WorkerProcess) -> int:
    """Signal every second, as a person does; of two at the same moment one may get lost.

    The kernel gives the second one to another thread, which does not wake the one that is blocked.
    """
    async with asyncio.timeout(BOUND_S):
        while True:
            process.signal(signal.SIGINT)
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    return await process.process.wait()


async def stops_pulling(js: JetStreamContext, kind: str) -> None:
    """Wait until the worker process asks for no more tasks of any type."""

    async def pulls() -> int:
        infos = [await consumer_info(js, f"{kind}{which}") for which in ("-thread", "-stubborn")]
        return sum(info["num_waiting"] for info in infos)

    async def none() -> bool:
        return not await pulls()

    await eventually(none, BOUND_S)


async def test_sigterm_lets_the_running_handler_end_and_exits_with_zero(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    kind, running, later = unique(), unique("running"), unique("later")
    async with program(shared_server, kind, tmp_path) as process:
        await publish_task(js, kind, running)
        await process.line(f"started {running}")
        process.signal()
        await stops_pulling(js, kind)
        await publish_task(js, kind, later)
        # Longer than the lease: it must be renewed while the worker drains.
        await asyncio.sleep(1.5)  # nothing announces that nothing happens
        assert (await consumer_info(js, kind))["delivered"]["consumer_seq"] == 1
        (tmp_path / running).touch()
        assert await process.exit_code() == 0
        assert "returned" in process.output
        assert later not in process.output
    assert await event_types(js, running) == ["step.started", "step.completed"]
    assert await event_types(js, later) == []


async def test_what_waits_for_a_slot_is_given_back_at_once_when_the_drain_begins(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    long, short, log = unique("long"), unique("short"), Log()
    release = asyncio.Event()
    full = quick_worker(shared_server.url, max_tasks=1, config={"waiting_max": seconds(60)})
    other = quick_worker(shared_server.url)

    async def hold(ctx: TaskContext) -> None:
        async with log.running_task("long"):
            await release.wait()

    async def take(ctx: TaskContext) -> str:
        return ctx.worker_id

    full.handle(long, hold)
    full.handle(short, take)  # AckWait is five minutes: only a nak can bring it to the other one
    other.handle(short, take)
    run_id = unique()
    await full.start()

    async def idle() -> bool:
        return bool((await consumer_info(js, short))["num_waiting"])

    await eventually(idle, BOUND_S)
    await publish_task(js, long, unique())
    await eventually(lambda: log.running == 1, BOUND_S)
    await publish_task(js, short, run_id)
    await eventually(lambda: full.stats().delivered == 2, BOUND_S)
    async with other:
        stopping = asyncio.create_task(full.stop())
        await completed(js, run_id)
        assert not stopping.done(), "the long handler still runs"
        release.set()
        await stopping
    assert full.drained
    assert [event["worker_id"] for event in await stored_events(js, run_id)] == [
        other.worker_id,
        other.worker_id,
    ]


async def test_many_queued_tasks_are_left_to_others_when_a_worker_stops(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log = unique(), Log()
    first, second = (quick_worker(shared_server.url) for _ in range(2))

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await asyncio.sleep(0.01)

    runs = [unique() for _ in range(300)]
    for run_id in runs:
        await publish_task(js, kind, run_id)
    for worker in (first, second):
        worker.handle(kind, handle, concurrency=5)
    await first.start()
    await eventually(lambda: len(log.ended) > 50, BOUND_S)
    await first.stop()
    assert first.stats().completed == len(log.ended)
    async with second:
        await eventually(lambda: len(log.ended) == 300, BOUND_S)
    assert sorted(log.started) == sorted(runs)
    assert first.drained


async def test_drain_that_takes_too_long_gives_the_task_back_and_exits_with_three(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    kind, run_id = unique(), unique()
    async with program(shared_server, kind, tmp_path, drain_s=0.3) as process:
        await publish_task(js, kind, run_id)
        await process.line(f"started {run_id}")
        process.signal()
        assert await process.exit_code() == 3
        assert f"cancelled {run_id}" in process.output
    started, released = await stored_events(js, run_id)
    assert (started["type"], released["type"]) == ("step.started", "step.released")
    assert released["payload"] == {"reason": "drain", "delay_ms": 0}
    (tmp_path / run_id).touch()
    async with program(shared_server, kind, tmp_path) as process:
        await completed(js, run_id)  # at once, and not when its lease has run out
        assert (await stored_events(js, run_id))[-1]["attempt_number"] == 1


@pytest.mark.parametrize("which", ["thread", "stubborn"])
async def test_handler_that_cannot_be_stopped_does_not_hold_up_the_exit(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path, which: str
) -> None:
    kind, run_id = unique(), unique()
    async with program(shared_server, kind, tmp_path, drain_s=0.3) as process:
        await publish_task(js, f"{kind}-{which}", run_id)
        await process.line(f"started {run_id}")
        process.signal(signal.SIGINT)
        assert await process.exit_code(20) == 3


async def test_process_of_a_handler_ends_with_the_drain(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    kind, run_id, marker = unique(), unique(), tmp_path / "pids"
    async with program(shared_server, kind, tmp_path, drain_s=0.3) as process:
        await publish_task(js, f"{kind}-process", run_id, input=str(marker))
        await eventually(marker.exists, BOUND_S)
        process.signal()
        assert await process.exit_code() == 3
    pids = [int(pid) for pid in marker.read_text().split()]
    await eventually(lambda: not any(alive(pid) for pid in pids), BOUND_S)
    assert await event_types(js, run_id) == ["step.started", "step.released"]


@pytest.mark.parametrize("which", ["", "-thread", "-stubborn"])
async def test_second_signal_forces_the_end(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path, which: str
) -> None:
    kind, run_id = unique(), unique()
    async with program(shared_server, kind, tmp_path, drain_s=60) as process:
        await publish_task(js, f"{kind}{which}", run_id)
        await process.line(f"started {run_id}")
        process.signal()
        await stops_pulling(js, kind)
        process.signal()
        assert await process.exit_code(20) == 130
        assert "forced to stop" in process.output
        assert which or f"cancelled {run_id}" in process.output


async def test_second_signal_forces_the_end_of_a_handler_that_blocks_the_loop(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    kind, run_id = unique(), unique()
    async with program(shared_server, kind, tmp_path, drain_s=60) as process:
        await publish_task(js, f"{kind}-blocking", run_id)
        await process.line(f"started {run_id}")
        process.signal()
        assert await signalled_until_it_ends(process) == 130


# ------------------------------------------------------------------------- what is left behind


@pytest.fixture
async def watched() -> AsyncIterator[tuple[EmbeddedServer, Connections]]:
    """A provisioned server that tells who is connected."""
    port = free_port()
    async with EmbeddedServer(config=f'http: "127.0.0.1:{port}"') as server:
        async with connected(server.url) as client:
            await provision(client.jetstream())
        yield server, Connections(port)


class Connections:
    """The server's own list of its connections."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/connz?subs=1"

    async def all(self) -> list[dict[str, Any]]:
        def ask() -> list[dict[str, Any]]:
            with urllib.request.urlopen(self._url, timeout=5) as answer:  # noqa: S310 - http, ours
                connections: list[dict[str, Any]] = json.load(answer)["connections"]
                return connections

        return await asyncio.to_thread(ask)

    async def none(self) -> bool:
        return not await self.all()


class Left:
    """What this interpreter had before, to be compared with what it has after."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._tasks = asyncio.all_tasks()

    async def nothing(self) -> None:
        assert [one for one in asyncio.all_tasks() if one not in self._tasks] == []
        # A thread is there for a moment after its last call.
        await eventually(lambda: not self._threads_now(), what=str(self._threads_now()))

    def _threads_now(self) -> list[str]:
        new = [one.name for one in threading.enumerate() if one not in self._threads]
        # The default executor is the loop's own, and ends with it.
        return [name for name in new if not name.startswith("asyncio_")]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_stop_leaves_no_thread_task_process_or_connection(
    watched: tuple[EmbeddedServer, Connections],
) -> None:
    server, connections = watched
    left = Left()
    worker = quick_worker(server.url, config={"cancel_watch_after": seconds(0.05)})
    kinds = {
        unique("process"): (process_handlers.process_id, {"executor": "process"}),
        unique("thread"): (lambda ctx: ctx.run_id, {"executor": "thread"}),
        unique("long"): (long_enough_to_be_watched, {}),
    }
    for kind, (handler, options) in kinds.items():
        worker.handle(kind, handler, **options)
    async with worker:
        assert [one["name"] for one in await connections.all()] == [
            worker.worker_id,
            f"{worker.worker_id} leases",
        ]
        async with connected(server.url) as client:
            js, runs = client.jetstream(), []
            for kind in kinds:
                runs.append(unique())
                await publish_task(js, kind, runs[-1], input=1)
            for run_id in runs:
                await completed(js, run_id)
            pid = (await stored_events(js, runs[0]))[-1]["payload"]
        assert alive(pid)
    assert not alive(pid)
    await left.nothing()
    await eventually(connections.none, BOUND_S)


async def long_enough_to_be_watched(ctx: TaskContext) -> None:
    await asyncio.sleep(0.3)


async def test_stop_leaves_a_client_that_was_handed_over_as_it_was(
    watched: tuple[EmbeddedServer, Connections],
) -> None:
    server, connections = watched
    async with connected(server.url) as client:
        await client.jetstream().account_info()
        left, subscriptions = Left(), set(client._subs)
        worker = quick_worker(client)
        worker.handle(unique(), long_enough_to_be_watched)
        await worker.start()
        assert len(await connections.all()) == 2
        await worker.stop()
        assert client.is_connected
        assert set(client._subs) == subscriptions

        async def only_ours() -> bool:
            names = await connections.all()
            return len(names) == 1 and len(names[0]["subscriptions_list"]) == len(subscriptions)

        await eventually(only_ours, BOUND_S)
        await left.nothing()


class Fails(Plugin[None]):
    """Fails where it is told to, after the worker has begun to start."""

    name = "fails"

    def __init__(self, where: str, kind: str) -> None:
        super().__init__()
        self._where = where
        self._kind = kind

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: Any) -> AsyncIterator[None]:
        if self._where == "worker_scope":
            raise StartError("fails on purpose")
        yield

    @hookimpl
    async def open_source(self, worker: Any, task: Any) -> None:
        if self._where == "open_source" and task.name == self._kind:
            raise StartError("fails on purpose")


@pytest.mark.parametrize("where", ["worker_scope", "open_source"])
async def test_start_that_fails_half_way_leaves_nothing(
    watched: tuple[EmbeddedServer, Connections], where: str
) -> None:
    server, connections = watched
    left, kinds = Left(), [unique(), unique()]
    worker = quick_worker(server.url, plugins=[Fails(where, kinds[1])])
    for kind in kinds:
        worker.handle(kind, long_enough_to_be_watched)
    with pytest.raises(Exception, match="fails on purpose"):
        await worker.start()
    await left.nothing()
    await eventually(connections.none, BOUND_S)
    await worker.stop()  # there is nothing to stop


class Opened:
    """A plugin's source that has been opened; it is never read."""

    ack_wait = seconds(1)
    confirm_leases = False
    fenced = False

    def __init__(self) -> None:
        self.calls: list[str] = []

    def deliveries(self, slots: Any) -> AsyncIterator[Any]:
        raise AssertionError("the worker has not started")

    def settled(self, delivery: Any) -> None:
        raise AssertionError("there was no delivery")

    async def stop(self) -> None:
        self.calls.append("stop")
        raise RuntimeError("and yet the rest is done")

    async def close(self) -> None:
        self.calls.append("close")


class OpensOne(Plugin[None]):
    """Opens a source for one task type, and fails for the next."""

    name = "opens-one"

    def __init__(self, source: Opened) -> None:
        super().__init__()
        self._sources = [source]

    @hookimpl
    async def open_source(self, worker: Any, task: Any) -> Opened:
        return self._sources.pop()


async def test_source_of_a_plugin_is_closed_when_another_one_cannot_be_opened(
    watched: tuple[EmbeddedServer, Connections],
) -> None:
    server, connections = watched
    source, left = Opened(), Left()
    worker = quick_worker(server.url, plugins=[OpensOne(source)])
    for _ in range(2):
        worker.handle(unique(), long_enough_to_be_watched)
    with pytest.raises(Exception, match="pop from empty list"):
        await worker.start()
    assert source.calls == ["stop", "close"]
    await left.nothing()
    await eventually(connections.none, BOUND_S)


@pytest.mark.parametrize("after_turns", [1, 20, 60])
async def test_start_that_is_given_up_leaves_nothing(
    watched: tuple[EmbeddedServer, Connections], after_turns: int
) -> None:
    server, connections = watched
    left = Left()
    worker = quick_worker(server.url)
    worker.handle(unique(), long_enough_to_be_watched)
    starting = asyncio.create_task(worker.start())
    for _ in range(after_turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await worker.stop()
    await left.nothing()
    await eventually(connections.none, BOUND_S)


async def test_start_that_is_given_up_while_no_server_is_there_leaves_nothing() -> None:
    left = Left()
    worker = quick_worker(f"nats://127.0.0.1:{free_port()}")
    worker.handle(unique(), long_enough_to_be_watched)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await worker.start()
    await left.nothing()


async def test_worker_is_started_once_however_often_it_is_asked_to(
    watched: tuple[EmbeddedServer, Connections],
) -> None:
    server, connections = watched
    worker = quick_worker(server.url)
    worker.handle(unique(), long_enough_to_be_watched)
    first, second = await asyncio.gather(worker.start(), worker.start(), return_exceptions=True)
    assert first is None
    assert isinstance(second, UsageError)
    assert len(await connections.all()) == 2
    await worker.stop()


async def test_worker_is_stopped_once_however_often_it_is_asked_to(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, log, release = unique(), Log(), asyncio.Event()
    worker = quick_worker(shared_server.url)

    @worker.task(kind)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await release.wait()

    await worker.stop()  # before the start: nothing to do
    assert worker.state == "starting"
    await worker.start()
    await publish_task(js, kind, unique())
    await eventually(lambda: log.running == 1)
    first, second = asyncio.create_task(worker.stop()), asyncio.create_task(worker.stop())
    await eventually(lambda: worker.state == "draining")
    second.cancel()  # who no longer wants to wait does not break the drain
    release.set()
    await first
    await worker.stop()
    assert worker.state == "stopped"
    assert worker.drained
    assert worker.stats().completed == 1
    with pytest.raises(UsageError, match="started already"):
        await worker.start()


async def test_error_inside_the_block_drains_and_comes_out(
    shared_server: EmbeddedServer,
) -> None:
    worker = quick_worker(shared_server.url)
    worker.handle(unique(), long_enough_to_be_watched)
    with pytest.raises(ZeroDivisionError):
        async with worker:
            raise ZeroDivisionError
    assert worker.state == "stopped"


async def test_stop_while_the_server_is_gone_ends(nats_server: EmbeddedServer) -> None:
    left, log = Left(), Log()
    worker = quick_worker(nats_server.url, config={"drain_timeout": seconds(0.5)})
    kind = unique()

    @worker.task(kind)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await asyncio.sleep(0.1)

    async with connected(nats_server.url) as client:
        await worker.start()
        await publish_task(client.jetstream(), kind, unique())
        await eventually(lambda: log.running == 1)
    nats_server.kill()
    async with asyncio.timeout(BOUND_S):
        await worker.stop()
    assert worker.state == "stopped"
    await left.nothing()
