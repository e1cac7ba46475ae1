"""Parked tasks go on once, whoever dies, is late, or does a thing twice.

Method: what a worker leaves behind that dies at one moment or another is made by a real kill, or by
storing what it would have stored. Real: the server, SIGKILL. Fake: a worker that acks by hand.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from signals_support import (
    DAYS,
    SOON,
    Messages,
    Serve,
    parked,
    records,
    sent,
)
from support import connected, eventually, publish_task, unique
from worker_process import worker_process
from worker_support import (
    BOUND_S,
    OtherWorker,
    event_types,
    history,
    settled,
)

from dagnats_worker import (
    SIGNALS,
    Client,
    EmbeddedServer,
    TaskContext,
)
from dagnats_worker.errors import SupersededError
from dagnats_worker_signals._parking import Waits

pytestmark = pytest.mark.server

PARKED_AND_DONE = ["step.started", "step.released", "step.started", "step.completed"]
CODE = """
    from dagnats_worker_signals import SignalsPlugin

    worker = Worker(url, config=QUICK, plugins=[SignalsPlugin()])

    @worker.task(task_type, ack_wait=LEASE)
    async def handler(ctx: TaskContext):
        note("runs")
        return (await ctx.wait_for_signal("go", timedelta(days=3), park=True)).decode()
"""
DYING = """
    from dagnats_worker import _dispatcher
    from dagnats_worker_signals._parking import Parking
    from dagnats_worker_signals._waking import Waker

    def die(*_):
        note("dies")
        os.kill(os.getpid(), signal.SIGKILL)

    async def die_later(*_):
        die()

    def dying_after(method):
        async def method_and_die(self, *arguments, **more):
            await method(self, *arguments, **more)
            die()

        return method_and_die

    if DIES == "record stored":
        Parking.put = dying_after(Parking.put)
    elif DIES == "release stored":
        _dispatcher.settle = die_later
    elif DIES == "dispatched":
        Waker._dispatch = dying_after(Waker._dispatch)
"""


async def test_signal_between_the_look_and_the_record_is_not_missed(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> str:
        signals: Any = ctx.use(SIGNALS)
        put = signals._shared.parking.put

        async def put_late(*record: Any) -> Any:
            await ctx.send_signal(ctx.run_id, "go", b"in between")
            return await put(*record)

        signals._shared.parking.put = put_late
        return (await ctx.wait_for_signal("go", DAYS, park=True)).decode()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        assert await run.result(SOON) == "in between"
        await settled(js, task_type)
    assert await event_types(js, run.run_id) == ["step.started", "step.completed"]


async def test_record_moves_nothing_while_its_message_is_in_the_queue(
    serve: Serve, nats_server: EmbeddedServer
) -> None:
    """As when a worker has stored the record, and dies or is slow before it acks the message."""
    url, handler, looks = nats_server.url, Messages(), []

    async def note(message: Msg) -> None:
        looks.append(message)

    async with connected(url) as nc, Client(url, plugins=()) as client:
        js = nc.jetstream()
        async with serve("ask", handler, url=url):
            run = await client.submit("ask")
            await parked(js, run.run_id)
        record = await js.get_last_msg("KV_parked_tasks", "$KV.parked_tasks.>")
        other = await OtherWorker.bound(js, "ask")
        again = await publish_task(js, "ask", run.run_id, message_id=unique())
        message = await other.take()
        value = (record.data or b"").replace(b'"sequence": 1', b'"sequence": %d' % again.seq)
        await js.publish(record.subject or "", value, headers=_of_the_plugin(record.headers))
        await nc.subscribe("$JS.API.STREAM.MSG.GET.TASK_QUEUES", cb=note)
        async with serve("ask", handler, url=url):
            await run.signal("go", b"yes")
            await eventually(lambda: len(looks) > 2, BOUND_S, what="a worker has looked")
            assert (await js.stream_info("TASK_QUEUES")).state.messages == 1
            assert len(handler.contexts) == 1
            await message.ack()
            assert await run.result(SOON) == "yes"
    assert len(handler.contexts) == 2


def _of_the_plugin(headers: dict[str, str] | None) -> dict[str, str]:
    assert headers is not None, "a record has headers"
    return {name: text for name, text in headers.items() if name.startswith("Dagnats-")}


async def test_zombie_leaves_the_record_of_a_later_delivery_alone(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> str:
        signals: Any = ctx.use(SIGNALS)
        later = replace(ctx.kept_task(), deliveries=2)
        await signals._shared.parking.put(later, f"{ctx.run_id}.go", time.time() + 60, Waits({}))
        with pytest.raises(SupersededError):
            await ctx.wait_for_signal("go", DAYS, park=True)
        return "too late"

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        assert await run.result(SOON) == "too late"
        await settled(js, task_type)


async def test_worker_killed_while_its_tasks_are_parked_is_not_needed(
    nats_server: EmbeddedServer, own_js: JetStreamContext, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    async with Client(nats_server.url, plugins=()) as client:
        with worker_process(nats_server.url, "ask", diary, CODE) as first:
            runs = [await client.submit("ask") for _ in range(3)]
            for run in runs:
                await parked(own_js, run.run_id)
            first.process.kill()
        await runs[0].signal("go", b"0")  # nobody lives who could hear it
        with worker_process(nats_server.url, "ask", diary, CODE):
            assert await runs[0].result(SOON) == "0"
            await runs[1].signal("go", b"1")
            assert await runs[1].result(SOON) == "1"
            assert await records(own_js) == [f"TASK_QUEUES.{await sequence_of(own_js, runs[2])}"]


async def sequence_of(js: JetStreamContext, run: Any) -> int:
    release = (await history(js, run.run_id))[1]
    return int(release.body["payload"]["kept"].partition(".")[2])


@pytest.mark.parametrize("moment", ["record stored", "release stored", "dispatched"])
async def test_task_goes_on_once_whenever_its_worker_dies(
    nats_server: EmbeddedServer, own_js: JetStreamContext, tmp_path: Path, serve: Serve, moment: str
) -> None:
    """Up to its ack the message comes again; after that the record does what is left to do."""
    diary, url, handler = tmp_path / "diary", nats_server.url, Messages()
    code = f"    DIES = {moment!r}\n{DYING}{CODE}"
    async with Client(url, plugins=()) as client:
        with worker_process(url, "ask", diary, code) as dying:
            run = await client.submit("ask")
            if moment == "dispatched":
                await parked(own_js, run.run_id)
                await run.signal("go", b"yes")
            await dying.wait_noted("dies")
            await dying.ended()
        await run.signal("go", b"yes")
        async with serve("ask", handler, url=url):
            assert await run.result(SOON) == "yes"
            await eventually(lambda: _is_empty(own_js), BOUND_S)
            await settled(own_js, "ask")
    assert len(handler.contexts) == 1
    types = await event_types(own_js, run.run_id)
    assert types.count("step.completed") == 1
    assert types.count("step.released") == (0 if moment == "record stored" else 1)


async def _is_empty(js: JetStreamContext) -> bool:
    return await records(js) == []


async def test_message_whose_ack_was_lost_is_acked_when_it_comes_again(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type, run_id, handler = unique(), unique(), Messages()
    async with serve(task_type, handler):
        await client.submit(task_type, run_id=run_id)
        await parked(js, run_id)
        first = handler.contexts[0].delivery
    # The same message once more, as if its ack had never come: the record names the message, and
    # this is another one, so the history has to name this one too.
    again = await js.publish(first.subject, first.data, headers={"Nats-Msg-Id": unique()})
    release = (await history(js, run_id))[1].body
    body = {**release, "payload": {**release["payload"], "kept": f"TASK_QUEUES.{again.seq}"}}
    await js.publish(f"history.{run_id}", json.dumps(body).encode())
    other = await OtherWorker.bound(js, task_type)
    await (await other.take()).nak()
    async with serve(task_type, handler):
        await settled(js, task_type)
    assert len(handler.contexts) == 1


async def test_task_that_was_dispatched_twice_is_run_once(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    """Whoever dispatched it died before the record was gone, longer ago than ids are remembered."""
    task_type, handler = unique(), Messages()
    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        await run.signal("go", b"yes")
        assert await run.result(SOON) == "yes"
        second = handler.contexts[1].delivery
        headers = {**second.headers, "Nats-Msg-Id": unique()}
        await js.publish(second.subject, second.data, headers=headers)
        await settled(js, task_type)
    assert len(handler.contexts) == 2
    assert await event_types(js, run.run_id) == PARKED_AND_DONE


async def test_second_dispatch_is_left_to_the_first_while_that_runs(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type = unique()
    contexts: list[TaskContext] = []

    async def handler(ctx: TaskContext) -> str:
        contexts.append(ctx)
        await ctx.wait_for_signal("go", DAYS, park=True)
        return (await ctx.wait_for_signal("end", SOON)).decode()

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await parked(js, run.run_id)
        await run.signal("go", b"")
        await eventually(lambda: len(contexts) == 2, BOUND_S)
        second = contexts[1].delivery
        headers = {**second.headers, "Nats-Msg-Id": unique()}
        duplicate = await js.publish(second.subject, second.data, headers=headers)
        await eventually(lambda: _is_gone(js, duplicate.seq), BOUND_S)
        await run.signal("end", b"done")
        assert await run.result(SOON) == "done"
    assert len(contexts) == 2


async def _is_gone(js: JetStreamContext, sequence: int) -> bool:
    try:
        await js.get_msg("TASK_QUEUES", sequence)
    except NotFoundError:
        return True
    return False


async def test_task_is_woken_once_by_many_workers(
    serve: Serve, client: Client, js: JetStreamContext
) -> None:
    task_type, handler = unique(), Messages()
    async with serve(task_type, handler), serve(task_type, handler), serve(task_type, handler):
        runs = [await client.submit(task_type) for _ in range(30)]
        for run in runs:
            await parked(js, run.run_id)
        for run in runs:
            await run.signal("go", b"yes")
        assert [await run.result(SOON) for run in runs] == ["yes"] * 30
        await settled(js, task_type)
    assert len(handler.contexts) == 60


async def test_restart_of_the_server_loses_no_parked_task(
    serve: Serve, nats_server: EmbeddedServer, own_js: JetStreamContext
) -> None:
    url, handler = nats_server.url, Messages()
    async with serve("ask", handler, url=url), Client(url, plugins=()) as client:
        runs = [await client.submit("ask") for _ in range(2)]
        for run in runs:
            await parked(own_js, run.run_id)
        nats_server.restart()
        for run in runs:
            await sent(client, run.run_id)
        assert [await run.result(SOON) for run in runs] == ["yes"] * 2
