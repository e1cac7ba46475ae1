"""Tasks that wait without a slot: stored, acked, and dispatched again.

Method: workers with the plugin, and what the streams, the buckets and the histories then have.
Real: the server. Fake: nothing.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import pytest
from nats.js import JetStreamContext
from signals_support import (
    DAYS,
    SOON,
    Messages,
    Serve,
    completed,
    is_queued,
    parked,
    records,
    started,
)
from support import connected, eventually, publish_task, unique
from worker_support import (
    BOUND_S,
    event_types,
    history,
    publish_cancel,
    quick_retry,
    settled,
    stored,
)

from dagnats_worker import (
    SIGNALS,
    Client,
    EmbeddedServer,
    Released,
    ReleaseTask,
    SyncTaskContext,
    TaskContext,
    TaskFailedError,
    provision,
)
from dagnats_worker.errors import KeyValueError, SignalTimeoutError

pytestmark = pytest.mark.server

PARKED_AND_DONE = ["step.started", "step.released", "step.started", "step.completed"]


# ------------------------------------------------------------------------- parked and woken


async def test_parked_task_takes_no_slot_and_goes_on_with_its_signal(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type, handler = unique(), Messages()
    async with serve(task_type, handler, max_tasks=1):
        runs = [await client.submit(task_type) for _ in range(3)]
        for run in runs:
            await parked(js, run.run_id)
        for run in runs:
            await run.signal("go", run.run_id.encode())
        assert [await run.result(SOON) for run in runs] == [run.run_id for run in runs]
        await settled(js, task_type)
    for run in runs:
        assert await event_types(js, run.run_id) == PARKED_AND_DONE


async def test_signal_that_is_there_is_returned_at_once(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    await client.signal(run_id, "go", b"yes")
    async with serve(task_type, Messages()):
        run = await client.submit(task_type, run_id=run_id)
        assert await run.result(SOON) == "yes"
    assert await event_types(js, run_id) == ["step.started", "step.completed"]


async def test_blocking_handler_is_parked_too(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    def handler(ctx: SyncTaskContext) -> str:
        return ctx.wait_for_signal("go", DAYS, park=True).decode()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "yes"


@pytest.mark.parametrize("group", [None, "eu"])
async def test_message_that_goes_on_is_the_one_that_was_parked(
    nats_server: EmbeddedServer, own_js: JetStreamContext, serve: Serve, group: str | None
) -> None:
    run_id, handler = unique(), Messages()
    fields: dict[str, Any] = {"input": {"x": [1.50, "é"]}, "metadata": {"k": "v"}, "attempt": 3}
    headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "Colour": "red"}
    async with serve("ask", handler, url=nats_server.url):
        await publish_task(own_js, "ask", run_id, group=group, headers=headers, **fields)
        await parked(own_js, run_id)
        await own_js.publish(f"$KV.signals.{run_id}.go", b"yes")
        await completed(own_js, run_id)
    first, second = (ctx.delivery for ctx in handler.contexts)
    assert (second.subject, second.data) == (first.subject, first.data)
    new = {"Nats-Msg-Id", "Dagnats-Kept", "Dagnats-Signal-Waits"}
    assert set(second.headers) - set(first.headers) == new - {"Nats-Msg-Id"}
    assert {**second.headers, **first.headers}.items() >= headers.items()
    assert second.headers["Nats-Msg-Id"] != first.headers["Nats-Msg-Id"]


async def test_two_waits_of_one_handler_are_parked_one_after_the_other(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    waits: list[dict[str, Any]] = []

    async def handler(ctx: TaskContext) -> str:
        waits.append(json.loads(ctx.headers.get("Dagnats-Signal-Waits", "{}")))
        first = await ctx.wait_for_signal("first", DAYS, park=True)
        second = await ctx.wait_for_signal("second", DAYS, park=True)
        return (first + second).decode()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        await run.signal("second", b"2")
        await run.signal("first", b"1")
        assert await run.result(SOON) == "12"
        other = await client.submit(task_type)
        await parked(js, other.run_id)
        await other.signal("first", b"1")
        await parked(js, other.run_id, 2)
        await other.signal("second", b"2")
        assert await other.result(SOON) == "12"
    assert [set(one) for one in waits] == [
        set(), {"first"}, set(), {"first"}, {"first", "second"}
    ]  # fmt: skip


async def test_one_signal_wakes_every_step_of_its_run(serve: Serve, js: JetStreamContext) -> None:
    task_type, run_id, handler = unique(), unique(), Messages()
    async with serve(task_type, handler), serve(task_type, handler):
        for number in range(30):
            await publish_task(js, task_type, run_id, f"step-{number}")

        async def all_parked() -> bool:
            types = await event_types(js, run_id)
            return types.count("step.released") == 30 and not await is_queued(js, run_id)

        await eventually(all_parked, BOUND_S)
        await js.publish(f"$KV.signals.{run_id}.go", b"yes")

        async def all_completed() -> bool:
            return (await event_types(js, run_id)).count("step.completed") == 30

        await eventually(all_completed, BOUND_S)
        await settled(js, task_type)
    assert len(handler.contexts) == 60


# ------------------------------------------------------------------------- time


async def test_parked_wait_times_out(serve: Serve, client: Client, js: JetStreamContext) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> str:
        with pytest.raises(SignalTimeoutError, match='"never" timed out after 1s'):
            await ctx.wait_for_signal("never", timedelta(seconds=1), park=True)
        with pytest.raises(SignalTimeoutError):  # its time is over, however often it is asked for
            await ctx.wait_for_signal("never", timedelta(seconds=1), park=True)
        return "timed out"

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        assert await run.result(SOON) == "timed out"


async def test_time_of_a_parked_wait_counts_from_the_first_one(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    until: list[str] = []

    async def handler(ctx: TaskContext) -> str:
        until.append(ctx.headers.get("Dagnats-Signal-Waits", ""))
        if len(until) == 2:  # somebody has taken the signal away, so it is parked once more
            await (await js.key_value("signals")).delete(f"{ctx.run_id}.go")
        return (await ctx.wait_for_signal("go", DAYS, park=True)).decode()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        for times, word in ((1, b"first"), (2, b"second")):
            await parked(js, run.run_id, times)
            await run.signal("go", word)
        assert await run.result(SOON) == "second"
    assert until[0] == ""
    assert until[1] == until[2] != ""


async def test_signal_that_comes_before_the_task_is_dispatched_wins_over_its_time(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> str:
        return (await ctx.wait_for_signal("go", timedelta(seconds=1), park=True)).decode()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
    await run.signal("go", b"yes")  # nobody is there to hear it
    until_s = time.time() + 1
    await eventually(lambda: time.time() > until_s, BOUND_S, what="its time is over")
    async with serve(task_type, handler):
        assert await run.result(SOON) == "yes"


# ------------------------------------------------------------------------- attempts


async def test_parking_is_no_attempt_and_no_crash(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    attempts: list[int] = []

    async def handler(ctx: TaskContext) -> str:
        attempts.append(ctx.attempt)
        for number in range(3):
            await ctx.wait_for_signal(f"go-{number}", DAYS, park=True)
        if ctx.attempt < 3:
            raise RuntimeError("busy")
        return "done"

    async with serve(task_type, handler, retry=quick_retry(3)):
        run = await client.submit(task_type)
        for number in range(3):
            await parked(js, run.run_id, number + 1)
            await run.signal(f"go-{number}", b"")
        assert await run.result(SOON) == "done"
    assert attempts == [1, 1, 1, 1, 2, 3]


async def test_attempts_from_before_are_counted(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> None:
        if ctx.attempt == 2:
            await ctx.wait_for_signal("go", DAYS, park=True)
        raise RuntimeError(f"busy {ctx.attempt}")

    async with serve(task_type, handler, retry=quick_retry(3)):
        run = await client.submit(task_type)
        await parked(js, run.run_id, 2)
        await run.signal("go", b"")
        with pytest.raises(TaskFailedError, match="busy 3"):
            await run.result(SOON)


async def test_managed_run_keeps_its_attempt(serve: Serve, js: JetStreamContext) -> None:
    task_type, run_id, handler = unique(), unique(), Messages()
    async with serve(task_type, handler):
        await publish_task(js, task_type, run_id, attempt=4, workflow_name="hello")
        await parked(js, run_id)
        await js.publish(f"$KV.signals.{run_id}.go", b"yes")
        await completed(js, run_id)
    assert [ctx.attempt for ctx in handler.contexts] == [4, 4]
    assert (await history(js, run_id))[-1].body["attempt_number"] == 4


# ------------------------------------------------------------------------- cancels


async def test_task_of_a_run_that_was_cancelled_meanwhile_is_not_run_again(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type, handler = unique(), Messages()
    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        await publish_cancel(js, run.run_id)
        await run.signal("go", b"yes")
        await eventually(lambda: _no_record(js, handler), BOUND_S)
        await settled(js, task_type)
    assert len(handler.contexts) == 1


async def _no_record(js: JetStreamContext, handler: Messages) -> bool:
    sequence = handler.contexts[0].delivery.sequence
    return f"TASK_QUEUES.{sequence}" not in await records(js)


# ------------------------------------------------------------------------- what cannot be parked


async def test_sticky_task_waits_in_its_slot(
    nats_server: EmbeddedServer, own_js: JetStreamContext, serve: Serve
) -> None:
    handler = Messages()
    run_id = unique()
    body = {"task_id": f"{run_id}.step", "run_id": run_id, "step_id": "step"}
    async with serve("ask", handler, url=nats_server.url, worker_id="sticky-1") as worker:
        subject = f"sticky.ask.{worker.worker_id}.{run_id}"
        await own_js.publish(subject, json.dumps(body).encode())
        await eventually(lambda: handler.contexts, BOUND_S)
        await own_js.publish(f"$KV.signals.{run_id}.go", b"yes")

        await completed(own_js, run_id)
    assert await event_types(own_js, run_id) == ["step.started", "step.completed"]
    assert await records(own_js) == []


async def test_task_that_is_too_large_to_be_parked_is_refused_with_both_sizes(
    serve: Serve, client: Client
) -> None:
    task_type = unique()
    async with serve(task_type, Messages()):
        run = await client.submit(task_type, "x" * (1024 * 1024 - 600))
        with pytest.raises(TaskFailedError, match=r"\d+ bytes.* at most 1048576"):
            await run.result(SOON)


async def test_task_whose_headers_could_not_be_sent_again_is_refused_with_both_sizes(
    serve: Serve, client: Client
) -> None:
    task_type = unique()
    async with serve(task_type, Messages()):
        run = await client.submit(task_type, headers={"Large": "x" * 65_400})
        with pytest.raises(TaskFailedError, match=r"headers have \d+ bytes.* at most 65535"):
            await run.result(SOON)


async def test_full_bucket_gives_the_task_back(
    serve: Serve, nats_server: EmbeddedServer, own_js: JetStreamContext
) -> None:
    url, handler = nats_server.url, Messages()
    async with (
        serve("ask", handler, url=url, parked_max=1),
        Client(url, plugins=()) as client,
    ):
        first = await client.submit("ask")
        await parked(own_js, first.run_id)
        await eventually(lambda: _is_told(handler), BOUND_S)
        second = await client.submit("ask")
        await eventually(lambda: _was_released(own_js, second.run_id), BOUND_S)
    release = (await history(own_js, second.run_id))[1]
    assert release.body["payload"]["reason"] == "delay"
    assert await is_queued(own_js, second.run_id)


def _is_told(handler: Messages) -> bool:
    signals: Any = handler.contexts[0].use(SIGNALS)
    return bool(signals._shared.parking.parked)


async def _was_released(js: JetStreamContext, run_id: str) -> bool:
    return "step.released" in await event_types(js, run_id)


async def test_handler_that_swallows_its_end_is_parked_all_the_same(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> str:
        try:
            return (await ctx.wait_for_signal("go", DAYS, park=True)).decode()
        except ReleaseTask:
            assert isinstance(ctx.outcome, Released)
            return "never"

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "yes"


async def test_bucket_of_parked_tasks_is_made_by_the_worker(
    nats_server: EmbeddedServer, own_js: JetStreamContext, serve: Serve
) -> None:
    await own_js.delete_stream("KV_parked_tasks")
    url = nats_server.url
    async with serve("ask", Messages(), url=url), Client(url, plugins=()) as client:
        assert (await own_js.stream_info("KV_parked_tasks")).config.allow_msg_ttl
        run = await client.submit("ask")
        await parked(own_js, run.run_id)
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "yes"
    (marker,) = await stored(own_js, "KV_parked_tasks", ">")
    assert marker.headers["KV-Operation"] == "DEL"
    assert marker.headers["Nats-TTL"] == "10m"


async def test_worker_that_may_not_make_the_bucket_still_waits_in_slots(serve: Serve) -> None:
    users = """authorization { users = [
        {user: admin, password: secret}
        {user: worker, password: secret,
         permissions: {publish: {deny: ["$JS.API.STREAM.CREATE.>"]}}}
    ] }"""

    async def handler(ctx: TaskContext) -> str:
        with pytest.raises(
            KeyValueError, match=r"'parked_tasks' not found.*`dagnats-worker setup`"
        ):
            await ctx.wait_for_signal("go", SOON, park=True)
        return (await ctx.wait_for_signal("go", SOON)).decode()

    with EmbeddedServer(config=users) as server:
        admin, worker = (
            server.url.replace("//", f"//{user}:secret@") for user in ("admin", "worker")
        )
        async with connected(admin) as nc:
            await provision(nc.jetstream())
            await nc.jetstream().delete_stream("KV_parked_tasks")
        async with serve("ask", handler, url=worker), Client(admin, plugins=()) as client:
            run = await client.submit("ask")
            await started(client, run.run_id)
            await run.signal("go", b"yes")
            assert await run.result(SOON) == "yes"
