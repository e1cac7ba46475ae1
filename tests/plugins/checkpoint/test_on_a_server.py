"""Workers that are killed and frozen, servers that are restarted, and a bucket that is not there.

Method: workers in processes of their own, which write down what they do, or one in this process; a
server that is killed and started again. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from checkpoint_support import AT_ONCE, BOUND, QUICK, ServerGround, bench, once
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique
from worker_process import WorkerProcess, worker_process
from worker_support import history, settled

from dagnats_worker import Client, EmbeddedServer, TaskContext, TaskFailedError, Worker, provision
from dagnats_worker_checkpoint import CheckpointPlugin, CheckpointSettings

pytestmark = pytest.mark.server

WORKER = """
from dagnats_worker_checkpoint import *

worker = Worker(url, plugins=[CheckpointPlugin()], config=configured())

async def until(line):
    while not times(line):
        await asyncio.sleep(0.02)

"""


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """Where the handlers of worker processes write what they do."""
    return tmp_path / "diary"


def entry_of(diary: Path, line: str) -> None:
    with diary.open("a") as file:
        file.write(f"{line}\n")


async def stored_state(js: JetStreamContext, key: str) -> bytes | None:
    return (await js.get_last_msg("KV_checkpoints", f"$KV.checkpoints.{key}")).data


# ------------------------------------------------------------------------- killed and frozen

COUNTS = """
@worker.task(task_type, ack_wait=LEASE)
async def handler(ctx: TaskContext) -> int:
    done = int(await ctx.load_checkpoint() or 0)
    note(f"begins at {done}")
    for number in range(done, 4):
        note(f"item {number}")
        await ctx.checkpoint(number + 1)
        if number == 1 and done == 0:
            note("is half-way")
            await until("never")
    return done
"""


async def test_task_of_a_killed_worker_is_resumed_by_another_from_its_checkpoint(
    shared_server: EmbeddedServer, js: JetStreamContext, diary: Path
) -> None:
    task_type, run_id = unique(), unique()
    await publish_task(js, task_type, run_id)
    with worker_process(shared_server.url, task_type, diary, WORKER + COUNTS) as first:
        await first.wait_noted("is half-way")
        first.signal(signal.SIGKILL)
        await first.ended()
    with worker_process(shared_server.url, task_type, diary, WORKER + COUNTS) as second:
        await second.wait_noted("begins at 2")
        await settled(js, task_type)
        assert [second.noted(f"item {number}") for number in range(4)] == [1, 1, 1, 1]
    outcome = (await history(js, run_id))[-1]
    assert (outcome.type, outcome.body["payload"]) == ("step.completed", 2)


LOSES = """
@worker.task(task_type, ack_wait=LEASE)
async def handler(ctx: TaskContext) -> str:
    me = os.getpid()
    await ctx.checkpoint(f"{me} began")
    note(f"began {me}")
    await until(f"go {me}")
    try:
        await ctx.checkpoint(f"{me} went on")
    except StaleAttemptError as error:
        note(f"stale {me}")
        raise
    note(f"saved {me}")
    await until(f"end {me}")
    return str(me)
"""


@pytest.mark.parametrize("newer", ["still runs", "has ended"])
async def test_frozen_worker_that_wakes_up_does_not_write_over_the_newer_checkpoint(
    shared_server: EmbeddedServer, js: JetStreamContext, diary: Path, newer: str
) -> None:
    task_type, run_id = unique(), unique()
    code = WORKER + LOSES
    with (
        worker_process(shared_server.url, task_type, diary, code) as first,
        worker_process(shared_server.url, task_type, diary, code) as second,
    ):
        await publish_task(js, task_type, run_id)
        await eventually(lambda: began(first) or began(second), what="one has the task")
        frozen, healthy = (first, second) if began(first) else (second, first)
        frozen.signal(signal.SIGSTOP)
        me = healthy.process.pid
        await healthy.wait_noted(f"began {me}")
        entry_of(diary, f"go {me}")
        await healthy.wait_noted(f"saved {me}")
        if newer == "has ended":
            entry_of(diary, f"end {me}")
            await settled(js, task_type)
        entry_of(diary, f"go {frozen.process.pid}")
        frozen.signal(signal.SIGCONT)
        await frozen.wait_noted(f"stale {frozen.process.pid}")
        assert await stored_state(js, f"{run_id}.step") == f'"{me} went on"'.encode()
        entry_of(diary, f"end {me}")
        await settled(js, task_type)
        for worker in (first, second):
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0
    assert saved_by(frozen) + saved_by(healthy) == 1
    outcomes = [event for event in await history(js, run_id) if event.type != "step.started"]
    assert [(one.type, one.body["payload"]) for one in outcomes] == [("step.completed", str(me))]


def saved_by(worker: WorkerProcess) -> int:
    return worker.noted(f"saved {worker.process.pid}")


def began(worker: WorkerProcess) -> int:
    return worker.noted(f"began {worker.process.pid}")


async def test_two_workers_share_tasks_and_each_goes_on_where_the_other_failed(
    shared_server: EmbeddedServer,
) -> None:
    task_type = unique()
    runs: Counter[str] = Counter()
    workers_of: dict[str, set[str]] = {}

    async def handler(ctx: TaskContext, number: int) -> list[int]:
        seen = json.loads(await ctx.load_checkpoint() or b"[]")
        runs[ctx.run_id] += 1
        workers_of.setdefault(ctx.run_id, set()).add(ctx.worker_id)
        seen.append(number + len(seen))
        await ctx.checkpoint(seen)
        if len(seen) < 3:
            raise ConnectionError("half-way")
        return seen

    workers = [
        Worker(shared_server.url, config=QUICK, plugins=[CheckpointPlugin()]) for _ in range(2)
    ]
    for worker in workers:
        worker.handle(task_type, handler, retry=AT_ONCE, concurrency=8)
    async with workers[0], workers[1], Client(shared_server.url, plugins=[]) as client:
        submitted = [await client.submit(task_type, number) for number in range(40)]
        results = [await run.result(BOUND) for run in submitted]
    assert results == [[number, number + 1, number + 2] for number in range(40)]
    assert set(runs.values()) == {3}
    assert any(len(both) == 2 for both in workers_of.values()), "some went from one to the other"


# ------------------------------------------------------------------------- the server


async def test_handler_saves_on_while_the_server_is_restarted(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    saved, may_go_on, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[Any] = []

    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)
        saved.set()
        await may_go_on.wait()
        await ctx.checkpoint(2)
        await ctx.checkpoint(3)
        seen.append((ctx.deliveries, await ctx.load_checkpoint()))
        over.set()

    async with connected(nats_server.url) as nc:
        ground = ServerGround(nats_server.url, nc.jetstream())
    with caplog.at_level(logging.INFO, "dagnats_worker_checkpoint"):
        async with bench(ground, handler) as at:
            await at.submit()
            await once(saved)
            await asyncio.to_thread(nats_server.kill)
            may_go_on.set()
            await eventually(lambda: "trying again" in caplog.text, BOUND.total_seconds())
            await asyncio.to_thread(nats_server.restart)
            await once(over)
            await at.idle()
    assert seen == [(1, b"3")], "the restart has cost no attempt"
    async with connected(nats_server.url) as nc:
        assert await stored_state(nc.jetstream(), at.key) == b"3"


@pytest.fixture
async def bare(nats_server: EmbeddedServer) -> AsyncIterator[ServerGround]:
    """A server whose bucket nobody has created."""
    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        await js.delete_stream("KV_checkpoints")
        yield ServerGround(nats_server.url, js)


REMEDY = r"bucket 'checkpoints' not found.*dagnats-worker setup"


@pytest.mark.parametrize("call", ["checkpoint", "load", "pause"])
async def test_missing_bucket_is_an_error_that_says_what_creates_it(
    bare: ServerGround, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: TaskContext) -> str:
        match ctx.json():
            case "checkpoint":
                await ctx.checkpoint(1)
            case "load":
                await ctx.load_checkpoint()
            case "pause":
                await ctx.pause("wait", timedelta(hours=1))
        return "needs none"

    with caplog.at_level(logging.WARNING, "dagnats_worker_checkpoint"):
        async with bench(bare, handler) as at:
            [warning] = caplog.records
            assert "checkpoints cannot be saved or loaded now" in warning.message
            assert "dagnats-worker setup" in warning.message
            with pytest.raises(TaskFailedError, match=REMEDY):
                await at.run(call)
            others = await at.client.submit(at.task_type, "nothing")
            assert await others.result(BOUND) == "needs none"


async def test_task_that_waited_for_the_bucket_is_not_lost(bare: ServerGround) -> None:
    attempts: list[int] = []

    async def handler(ctx: TaskContext) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 2:
            await provision(bare.js)  # as `dagnats-worker setup` does
        await ctx.checkpoint({"attempt": ctx.attempt})
        return "saved"

    async with bench(bare, handler) as at:
        assert await at.run() == "saved"
        stored = await at.stored()
    assert attempts == [1, 2]
    assert stored is not None
    assert stored.value == b'{"attempt":2}'


async def test_bucket_of_another_name_is_made_at_the_start(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)

    ground, bucket = ServerGround(shared_server.url, js), unique("own")
    async with bench(ground, handler, CheckpointSettings(bucket=bucket)) as at:
        await at.run()
        stored = await at.stored(bucket)
        assert await at.stored() is None
    assert stored is not None
    assert stored.value == b"1"


async def test_checkpoint_that_expires_is_gone_after_its_time(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)

    settings = CheckpointSettings(after_completion="expire", expire_after=timedelta(seconds=1))
    async with bench(ServerGround(shared_server.url, js), handler, settings) as at:
        await at.run()
        await at.idle()

        async def gone() -> bool:
            return await at.stored(settings.expiring_bucket) is None

        await eventually(gone, BOUND.total_seconds(), what="it has expired")


async def test_bucket_stays_one_that_an_engine_can_update(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    """The engine asserts its own configuration again when it starts; TTLs would be in its way."""

    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)

    before = (await js.stream_info("KV_checkpoints")).config
    settings = CheckpointSettings(after_completion="expire", expire_after=timedelta(hours=1))
    async with bench(ServerGround(shared_server.url, js), handler, settings) as at:
        await at.run()
        await at.idle()
    assert (await js.stream_info("KV_checkpoints")).config == before
