"""Sending signals, and waiting for them in a slot.

Method: workers with the plugin, clients, and a plain nats-py client that does what a Go worker
does. Real: the server, SIGKILL. Fake: nothing, but the server of one test, which is in memory.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from signals_support import SOON, Serve, sent, started
from support import eventually, unique
from worker_process import worker_process
from worker_support import BOUND_S, LEASE, event_types, publish_cancel, settled

from dagnats_worker import (
    Client,
    EmbeddedServer,
    SyncTaskContext,
    TaskContext,
    TaskFailedError,
    Worker,
)
from dagnats_worker.errors import KeyValueError, SignalTimeoutError, UsageError
from dagnats_worker.testing import MemoryTransport, WorkerHarness
from dagnats_worker_signals import SignalsPlugin

pytestmark = pytest.mark.server

VECTORS = Path(__file__).parents[2] / "vectors" / "wire.json"


async def wait_for_go(ctx: TaskContext) -> str:
    return (await ctx.wait_for_signal("go", timedelta(hours=1))).decode()


# ------------------------------------------------------------------------- what is received


async def test_signal_that_was_sent_before_the_wait_is_found(serve: Serve, client: Client) -> None:
    run_id, task_type = unique(), unique()
    await client.signal(run_id, "go", {"by": "ada"})
    async with serve(task_type, wait_for_go):
        run = await client.submit(task_type, run_id=run_id)
        assert await run.result(SOON) == '{"by":"ada"}'


async def test_signal_ends_a_wait(serve: Serve, client: Client) -> None:
    task_type = unique()
    async with serve(task_type, wait_for_go):
        run = await client.submit(task_type)
        await started(client, run.run_id)
        await client.signal(run.run_id, "other", b"no")
        await client.signal(unique(), "go", b"no")
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "yes"


async def test_handler_signals_another_run(serve: Serve, client: Client) -> None:
    task_type, waiting = unique(), unique()

    async def handler(ctx: TaskContext) -> str:
        if ctx.run_id == waiting:
            return (await ctx.wait_for_signal("go", SOON)).decode()
        await ctx.send_signal(waiting, "go", ["any", "json"])
        return "sent"

    async with serve(task_type, handler):
        run = await client.submit(task_type, run_id=waiting)
        await client.submit(task_type)
        assert await run.result(SOON) == '["any","json"]'


async def test_blocking_handler_waits_and_sends(serve: Serve, client: Client) -> None:
    task_type = unique()

    def handler(ctx: SyncTaskContext) -> str:
        ctx.send_signal(ctx.run_id, "own", b"\x00\xff")
        return f"{ctx.wait_for_signal('own', SOON)!r} {ctx.wait_for_signal('go', SOON).decode()}"

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "b'\\x00\\xff' yes"


async def test_deleted_signal_is_none(serve: Serve, client: Client, js: JetStreamContext) -> None:
    task_type, run_id = unique(), unique()
    await client.signal(run_id, "go", b"old")
    await (await js.key_value("signals")).delete(f"{run_id}.go")
    async with serve(task_type, wait_for_go):
        run = await client.submit(task_type, run_id=run_id)
        await started(client, run_id)
        await run.signal("go", b"new")
        assert await run.result(SOON) == "new"


async def test_many_waits_share_one_watch(
    serve: Serve, nats_server: EmbeddedServer, own_js: JetStreamContext
) -> None:
    url = nats_server.url
    async with serve("ask", wait_for_go, url=url), Client(url, plugins=()) as client:
        runs = [await client.submit("ask") for _ in range(64)]
        for run in runs:
            await started(client, run.run_id)
        assert (await own_js.stream_info("KV_signals")).state.consumer_count == 1
        for run in runs:
            await run.signal("go", run.run_id.encode())
        assert [await run.result(SOON) for run in runs] == [run.run_id for run in runs]


# ------------------------------------------------------------------------- time, leases, cancels


async def test_wait_without_a_signal_times_out(serve: Serve, client: Client) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> str:
        with pytest.raises(TimeoutError) as late:
            await ctx.wait_for_signal("go", timedelta(milliseconds=1500))
        assert isinstance(late.value, SignalTimeoutError)
        return str(late.value)

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        assert await run.result(SOON) == 'signal "go" timed out after 1.5s'


async def test_lease_is_kept_while_a_handler_waits(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> int:
        with pytest.raises(SignalTimeoutError):
            await ctx.wait_for_signal("go", 3 * LEASE)
        return ctx.deliveries

    async with serve(task_type, handler, ack_wait=LEASE):
        run = await client.submit(task_type)
        assert await run.result(SOON) == 1
        await settled(js, task_type)
    assert await event_types(js, run.run_id) == ["step.started", "step.completed"]


async def test_cancelled_run_ends_the_wait(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    ended = asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        try:
            await ctx.wait_for_signal("go", timedelta(hours=1))
        finally:
            ended.set()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await started(client, run.run_id)
        await publish_cancel(js, run.run_id)
        async with asyncio.timeout(BOUND_S):
            await ended.wait()
        await settled(js, task_type)


async def test_wait_that_cannot_end_within_the_handlers_time_is_refused(
    serve: Serve, client: Client
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> None:
        await ctx.wait_for_signal("go", timedelta(minutes=2))

    async with serve(task_type, handler, timeout=timedelta(minutes=1)):
        run = await client.submit(task_type)
        with pytest.raises(TaskFailedError, match="wait with park=True, or raise its timeout"):
            await run.result(SOON)


# ------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["", "*", "a.>", "a b", ".a", "a.", "a..b", "ключ", "a" * 5000, 7])
async def test_name_that_is_no_key_is_refused(serve: Serve, client: Client, name: Any) -> None:
    task_type = unique()
    errors: list[BaseException] = []

    async def handler(ctx: TaskContext) -> None:
        for call in (ctx.wait_for_signal(name, SOON), ctx.send_signal(ctx.run_id, name, 1)):
            try:
                await call
            except (ValueError, TypeError) as error:
                errors.append(error)

    async with serve(task_type, handler):
        await (await client.submit(task_type)).result(SOON)
    assert [str(error).startswith("name of a signal") for error in errors] == [True, True]
    with pytest.raises((ValueError, TypeError), match="name of a signal"):
        await client.signal("run", name)


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(seconds=-1), 5])
async def test_time_that_is_no_time_is_refused(serve: Serve, client: Client, timeout: Any) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> None:
        await ctx.wait_for_signal("go", timeout, park=True)

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        with pytest.raises(TaskFailedError, match="a timedelta longer than zero") as refused:
            await run.result(SOON)
        assert refused.value.failure_type == "non_retriable"


async def test_signal_that_is_too_large_is_refused_with_both_sizes(
    serve: Serve, client: Client
) -> None:
    task_type = unique()
    large = b"x" * (1024 * 1024 + 1)

    async def handler(ctx: TaskContext) -> None:
        await ctx.send_signal("run", "go", large)

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        with pytest.raises(TaskFailedError, match=r"1048577 bytes.* at most 1048576"):
            await run.result(SOON)
    with pytest.raises(UsageError, match=r"1048577 bytes.* at most 1048576"):
        await client.signal("run", "go", large)


# ------------------------------------------------------------------------- consume


async def test_received_signal_stays_where_nothing_else_is_said(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    await client.signal(run_id, "go", b"yes")
    async with serve(task_type, wait_for_go):
        await (await client.submit(task_type, run_id=run_id)).result(SOON)
        await settled(js, task_type)
    assert (await (await js.key_value("signals")).get(f"{run_id}.go")).value == b"yes"


async def test_received_signal_is_consumed_when_its_step_has_ended(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    has_first = asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        words = [await ctx.wait_for_signal("go", SOON)]
        if ctx.iteration == 0:
            has_first.set()
            words.append(await ctx.wait_for_signal("go", SOON))
            ctx.continue_([word.decode() for word in words])
        else:
            ctx.complete(words[0].decode())

    async with serve(task_type, handler, consume=True):
        run = await client.submit(task_type)
        await run.signal("go", b"first")
        async with asyncio.timeout(BOUND_S):
            await has_first.wait()
        await run.signal("go", b"second")

        async def has_turned() -> bool:
            return (await event_types(js, run.run_id)).count("step.started") == 2

        await eventually(has_turned, BOUND_S)
        await run.signal("go", b"third")
        assert await run.result(SOON) == "third"
        await settled(js, task_type)
    outputs = [event.payload async for event in run.events() if event.type == "step.continue"]
    assert outputs == [["first", "second"]]


# ------------------------------------------------------------------------- Go, vectors, memory


async def test_signal_is_stored_as_a_go_worker_does(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    (vector,) = [one for one in _vectors() if one["name"] == "kv.signal"]
    _, bucket, run_id, name = vector["subject"].split(".")
    body = vector["wire"].encode()
    await client.signal(run_id, name, json.loads(body))
    stored = await js.get_last_msg(f"KV_{bucket}", vector["subject"])
    assert stored.data == body
    task_type = unique()

    async def handler(ctx: TaskContext) -> None:
        await ctx.send_signal(ctx.run_id, name, body)

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await run.result(SOON)
    stored = await js.get_last_msg(f"KV_{bucket}", f"$KV.{bucket}.{run.run_id}.{name}")
    assert (stored.data, stored.headers) == (body, None)


async def test_signal_of_a_go_worker_is_received(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    async with serve(task_type, wait_for_go):
        run = await client.submit(task_type)
        await started(client, run.run_id)
        await (await js.key_value("signals")).put(f"{run.run_id}.go", b"raw \xe2\x82\xac")
        assert await run.result(SOON) == "raw €"


async def test_waits_work_in_memory_and_park_nothing_there() -> None:
    worker = Worker(MemoryTransport(), plugins=[SignalsPlugin()])

    @worker.task("ask")
    async def ask(ctx: TaskContext) -> str:
        first = await ctx.wait_for_signal("first", SOON)
        return (first + await ctx.wait_for_signal("second", SOON, park=True)).decode()

    async with WorkerHarness(worker) as harness:
        run = await harness.submit("ask")
        await run.signal("first", b"1")
        await run.signal("second", b"2")
        assert (await harness.settled(run.run_id)).output == "12"


def _vectors() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(VECTORS.read_text())
    return loaded


# ------------------------------------------------------------------------- what breaks


@pytest.mark.parametrize("how", ["held", "parked"])
async def test_missing_bucket_is_named_with_the_command_that_makes_it(
    serve: Serve, nats_server: EmbeddedServer, own_js: JetStreamContext, how: str
) -> None:
    await own_js.delete_key_value("signals")
    errors: list[KeyValueError] = []

    async def handler(ctx: TaskContext) -> None:
        for call in (
            ctx.wait_for_signal("go", SOON, park=how == "parked"),
            ctx.send_signal(ctx.run_id, "go", 1),
        ):
            with pytest.raises(KeyValueError) as refused:
                await call
            errors.append(refused.value)

    url = nats_server.url
    async with serve("ask", handler, url=url), Client(url, plugins=()) as client:
        await (await client.submit("ask")).result(SOON)
        with pytest.raises(KeyValueError, match="`dagnats-worker setup`"):
            await client.signal("run", "go", 1)
    assert all("bucket 'signals' not found" in str(error) for error in errors)
    assert all("`dagnats-worker setup`" in str(error) for error in errors)
    assert len(errors) == 2


async def test_bucket_that_is_made_later_is_found(
    serve: Serve, nats_server: EmbeddedServer, own_js: JetStreamContext
) -> None:
    config = (await own_js.stream_info("KV_signals")).config
    await own_js.delete_key_value("signals")
    url = nats_server.url
    async with serve("ask", wait_for_go, url=url), Client(url, plugins=()) as client:
        await own_js.add_stream(config)
        run = await client.submit("ask")
        await started(client, run.run_id)
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "yes"


async def test_wait_outlives_a_restart_of_the_server(
    serve: Serve, nats_server: EmbeddedServer
) -> None:
    url = nats_server.url
    async with serve("ask", wait_for_go, url=url), Client(url, plugins=()) as client:
        during = await client.submit("ask")
        after = await client.submit("ask")
        await started(client, during.run_id)
        await started(client, after.run_id)
        nats_server.restart()
        # Sent as soon as the server answers, when nobody follows the bucket yet.
        await sent(client, during.run_id)
        assert await during.result(SOON) == "yes"
        await after.signal("go", b"yes")
        assert await after.result(SOON) == "yes"


async def test_worker_killed_while_it_waits_is_followed_by_another(
    nats_server: EmbeddedServer, own_js: JetStreamContext, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    code = """
        from dagnats_worker_signals import SignalsPlugin

        worker = Worker(url, config=QUICK, plugins=[SignalsPlugin()])

        @worker.task(task_type, ack_wait=LEASE)
        async def handler(ctx: TaskContext):
            note("waits")
            return (await ctx.wait_for_signal("go", timedelta(minutes=1))).decode()
    """
    async with Client(nats_server.url, plugins=()) as client:
        with worker_process(nats_server.url, "ask", diary, code) as first:
            run = await client.submit("ask")
            await first.wait_noted("waits")
            first.process.kill()
        with worker_process(nats_server.url, "ask", diary, code) as second:
            await second.wait_noted("waits", 2)
            await run.signal("go", b"yes")
            assert await run.result(SOON) == "yes"
    types = await event_types(own_js, run.run_id)
    assert types == ["step.started", "step.started", "step.completed"]
