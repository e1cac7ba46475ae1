"""Leases: who holds a task keeps it for as long as the handler runs, and no longer.

Method: a real server and AckWaits of a second. That a lease never lapsed is read from the server:
the message was delivered once, although a second worker waits for it. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import process_handlers
import pytest
from fleet_support import (
    BOUND_S,
    Log,
    Proxy,
    WorkerProcess,
    api,
    completed,
    consumer_info,
    event_types,
    quick_worker,
    seconds,
)
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique

from dagnats_worker import EmbeddedServer, TaskContext, Worker
from dagnats_worker._jetstream.provision import provision

LEASE = seconds(1)
FIVE_LEASES = 15
"""Renewals in five times the lease: one in each third of it."""


@asynccontextmanager
async def rival(url: str, kind: str, log: Log) -> AsyncIterator[Worker]:
    """Another worker of the type, which would run every task whose lease lapses."""
    worker = quick_worker(url)

    async def take(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            pass

    worker.handle(kind, take)
    async with worker:
        yield worker


async def deliveries(js: JetStreamContext, kind: str) -> int:
    """How often messages of a type were delivered, to anybody."""
    delivered: int = (await consumer_info(js, kind))["delivered"]["consumer_seq"]
    return delivered


async def test_handlers_five_times_as_long_as_the_lease_run_once(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    worker, others = quick_worker(shared_server.url), Log()
    release, thread_release = asyncio.Event(), threading.Event()

    async def on_loop(ctx: TaskContext) -> None:
        await release.wait()

    def in_thread(ctx: Any) -> None:
        assert thread_release.wait(BOUND_S)

    kinds = {
        unique("async"): (on_loop, {}),
        unique("thread"): (in_thread, {}),
        unique("process"): (process_handlers.file_appears, {"executor": "process"}),
    }
    for kind, (handler, options) in kinds.items():
        worker.handle(kind, handler, ack_wait=LEASE, **options)
    async with worker:
        runs = []
        for kind in kinds:
            runs.append(unique())
            await publish_task(js, kind, runs[-1], input=str(tmp_path / "go"))
        await eventually(lambda: worker.stats().slots_in_use == 3)
        first, second, third = kinds
        async with (
            rival(shared_server.url, first, others),
            rival(shared_server.url, second, others),
            rival(shared_server.url, third, others),
        ):
            await eventually(lambda: worker.stats().renewals >= 3 * FIVE_LEASES)
            assert [await deliveries(js, kind) for kind in kinds] == [1, 1, 1]
            release.set()
            thread_release.set()
            (tmp_path / "go").touch()
            for run_id in runs:
                await completed(js, run_id)
        assert not others.started
    assert worker.stats().completed == 3


BLOCKING_WORKER = """
import sys, time
from datetime import timedelta
from dagnats_worker import TaskContext, Worker, WorkerConfig

url, kind, blocked_max, timeout, block = sys.argv[1:]
worker = Worker(url, config=WorkerConfig(loop_blocked_max=timedelta(seconds=float(blocked_max))))

@worker.task(kind, ack_wait=timedelta(seconds=1), timeout=timedelta(seconds=float(timeout)))
async def handle(ctx: TaskContext) -> str:
    print("blocks", flush=True)
    time.sleep(float(block))
    print("renewals", worker.stats().renewals, flush=True)
    return "the one that blocked"

worker.run()
"""


async def test_handler_that_blocks_the_loop_keeps_its_lease(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, run_id, others = unique(), unique(), Log()
    program = WorkerProcess(BLOCKING_WORKER, shared_server.url, kind, "60", "60", "3.5")
    async with program, rival(shared_server.url, unique(), others):
        await eventually(lambda: consumer_info(js, kind), BOUND_S)
        await publish_task(js, kind, run_id)
        await program.line("blocks")
        async with rival(shared_server.url, kind, others):
            await completed(js, run_id)
            assert await deliveries(js, kind) == 1
        assert not others.started
        assert int((await program.line("renewals")).split()[1]) >= 8
        program.signal()
        assert await program.exit_code() == 0


@pytest.mark.parametrize(
    ("blocked_max", "timeout"),
    [("0.5", "60"), ("60", "0.5")],
    ids=["loop_blocked_max", "timeout of the task"],
)
async def test_renewal_ends_and_another_worker_takes_over(
    shared_server: EmbeddedServer, js: JetStreamContext, blocked_max: str, timeout: str
) -> None:
    kind, run_id, others = unique(), unique(), Log()
    program = WorkerProcess(BLOCKING_WORKER, shared_server.url, kind, blocked_max, timeout, "4")
    async with program:
        await eventually(lambda: consumer_info(js, kind), BOUND_S)
        await publish_task(js, kind, run_id)
        await program.line("blocks")
        async with rival(shared_server.url, kind, others):
            await completed(js, run_id)
            assert others.started == [run_id]
            await program.line("renewals")
            program.signal()
            assert await program.exit_code() == 0
    events = await event_types(js, run_id)
    assert events.count("step.completed") == 1, events
    assert "step.failed" not in events


async def test_start_that_arrives_late_does_not_undo_what_another_worker_has_done(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, run_id, log, others = unique(), unique(), Log(), Log()
    release = asyncio.Event()
    async with Proxy(shared_server.url) as proxy:
        worker = quick_worker(proxy.url)

        @worker.task(kind, ack_wait=LEASE)
        async def handle(ctx: TaskContext) -> None:
            async with log.running_task(ctx.run_id):
                await release.wait()

        async with worker:

            async def pulls() -> bool:
                return bool((await consumer_info(js, kind))["num_waiting"])

            await eventually(pulls, BOUND_S)
            proxy.heard.clear()
            await publish_task(js, kind, run_id)
            await eventually(lambda: log.running == 1, BOUND_S)
            async with rival(shared_server.url, kind, others):
                await completed(js, run_id)
            proxy.heard.set()
            release.set()
            await eventually(lambda: log.ended, BOUND_S)
    assert others.started == [run_id]
    assert await event_types(js, run_id) == ["step.started", "step.completed", "step.started"]


async def test_lease_that_another_starter_shortens_is_renewed_in_time(
    shared_server: EmbeddedServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    kind, log, others = unique(), Log(), Log()
    release = asyncio.Event()
    worker = quick_worker(shared_server.url, config={"consumer_check_every": seconds(0.1)})
    starter = quick_worker(shared_server.url)

    @worker.task(kind)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await release.wait()

    @starter.task(kind, ack_wait=seconds(2))
    async def take(ctx: TaskContext) -> None:
        async with others.running_task(ctx.run_id):
            pass

    async with worker:
        await publish_task(js, kind, unique())
        await eventually(lambda: log.running == 1)
        with caplog.at_level(logging.WARNING):
            await starter.start()
        assert f"workers-{kind} has AckWait 0:05:00" in caplog.text
        await eventually(lambda: worker.stats().renewals >= 5)
        assert await deliveries(js, kind) == 1
        release.set()
        await eventually(lambda: len(log.ended) == 1)
        await starter.stop()
    assert not others.started


async def test_lease_that_was_lengthened_is_no_longer_renewed_as_often(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, release = unique(), asyncio.Event()
    worker = quick_worker(shared_server.url, config={"consumer_check_every": seconds(0.1)})

    @worker.task(kind, ack_wait=LEASE)
    async def handle(ctx: TaskContext) -> None:
        await release.wait()

    async with worker:
        await publish_task(js, kind, unique())
        await eventually(lambda: worker.stats().renewals >= 1)
        config = (await consumer_info(js, kind))["config"]
        await api(
            js,
            f"CONSUMER.CREATE.TASK_QUEUES.workers-{kind}.task.{kind}.>",
            {"stream_name": "TASK_QUEUES", "config": {**config, "ack_wait": 600 * 10**9}},
        )
        source = worker._running._intakes[0]._source
        await eventually(lambda: source.ack_wait == seconds(600))
        before = worker.stats().renewals
        await asyncio.sleep(1)  # nothing announces that nothing happens
        assert worker.stats().renewals - before <= 1
        release.set()


# ------------------------------------------------------------------------- handed-over clients


def in_url(url: str) -> tuple[str, dict[str, Any]]:
    return url.replace("//", "//ann:pass@"), {}


def in_options(url: str) -> tuple[str, dict[str, Any]]:
    return url, {"user": "ann", "password": "pass"}


def token_in_url(url: str) -> tuple[str, dict[str, Any]]:
    return url.replace("//", "//sesame@"), {}


def token_in_options(url: str) -> tuple[str, dict[str, Any]]:
    return url, {"token": "sesame"}


def token_from_a_function(url: str) -> tuple[str, dict[str, Any]]:
    return url, {"token": lambda: "sesame"}


BY_USER = 'authorization { user: "ann", password: "pass" }'
BY_SECRET = 'authorization { token: "sesame" }'  # noqa: S105 - of a server of the test


@asynccontextmanager
async def handed_over(
    config: str, how: Callable[[str], tuple[str, dict[str, Any]]]
) -> AsyncIterator[Client]:
    """A connected client of the user, on a provisioned server that asks who it is."""
    async with EmbeddedServer(config=config) as server:
        url, options = how(server.url)
        async with connected(url, **options) as client:
            await provision(client.jetstream())
            yield client


async def run_one(client: Client, worker: Worker, handler: Callable[..., Any]) -> None:
    """Serve one task on the client, and leave the client as it was."""
    kind, run_id, subscriptions = unique(), unique(), len(client._subs)
    worker.handle(kind, handler, ack_wait=LEASE)
    async with worker:
        await publish_task(client.jetstream(), kind, run_id)
        await completed(client.jetstream(), run_id)
        assert await deliveries(client.jetstream(), kind) == 1
    assert client.is_connected
    assert len(client._subs) == subscriptions


@pytest.mark.parametrize(
    ("config", "how"),
    [
        (BY_USER, in_url),
        (BY_USER, in_options),
        (BY_SECRET, token_in_url),
        (BY_SECRET, token_in_options),
    ],
)
async def test_client_that_was_handed_over_is_opened_a_second_time(
    config: str, how: Callable[[str], tuple[str, dict[str, Any]]]
) -> None:
    async with handed_over(config, how) as client:
        worker = quick_worker(client)

        async def block(ctx: TaskContext) -> None:
            deadline = time.monotonic() + BOUND_S
            while worker.stats().renewals < 2 and time.monotonic() < deadline:
                time.sleep(0.05)  # noqa: ASYNC251 - blocking the loop is what is tested

        await run_one(client, worker, block)
        assert worker.stats().renewals >= 2


async def test_client_that_cannot_be_opened_a_second_time_renews_on_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with handed_over(BY_SECRET, token_from_a_function) as client:
        worker = quick_worker(client)

        async def wait(ctx: TaskContext) -> None:
            await eventually(lambda: worker.stats().renewals >= 5)

        with caplog.at_level(logging.WARNING):
            await run_one(client, worker, wait)
        warnings = [one.message for one in caplog.records if "second time" in one.message]
        assert len(warnings) == 1
        assert "renewed on the event loop" in warnings[0]
        assert not [one for one in threading.enumerate() if "leases" in one.name]
