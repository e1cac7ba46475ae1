"""A client that waits for runs while its server is killed and comes back, and one that submits.

Method: a real server with a store and a port that stay, killed and restarted; a worker in the same
process serves the tasks, or events are published as a worker does. What the client saw is compared
with the history stream. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from fleet_support import BOUND_S, QUICK, quick_worker, seconds
from nats.js import JetStreamContext
from support import connected, eventually, stored_events, unique

from dagnats_worker import Client, EmbeddedServer, TaskContext
from dagnats_worker._run import Run
from dagnats_worker.errors import PublishError, TransportError

CONFIG = replace(QUICK, follow_poll_every=seconds(0.5), request_timeout=seconds(0.5))


@pytest.fixture
async def client(nats_server: EmbeddedServer) -> AsyncIterator[Client]:
    async with Client(nats_server.url, plugins=[], config=CONFIG) as client:
        yield client


@pytest.fixture
async def js(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    """A client of the test's own that survives the server's absence."""
    async with connected(
        nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1
    ) as other:
        yield other.jetstream(timeout=5)


async def killed_and_back(server: EmbeddedServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)


async def publish_event(js: JetStreamContext, run_id: str, kind: str, number: int) -> None:
    """Store an event as a worker does, however often that needs to be tried."""
    body = {"type": kind, "run_id": run_id, "step_id": "step", "payload": number}
    headers = {"Nats-Msg-Id": f"{run_id}.{number}"}

    async def stored() -> bool:
        try:
            await js.publish(f"history.{run_id}", json.dumps(body).encode(), headers=headers)
        except Exception:  # noqa: BLE001 - nats-py raises many kinds while a server is away
            return False
        return True

    await eventually(stored, BOUND_S, what=f"event {number} is stored")


async def test_results_and_streams_arrive_although_the_server_is_killed_twice(
    nats_server: EmbeddedServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    kind, release, running = unique(), asyncio.Event(), 0
    worker = quick_worker(nats_server.url, plugins=[])

    @worker.task(kind, concurrency=8, ack_wait=seconds(2))
    async def handle(ctx: TaskContext, number: int) -> int:
        nonlocal running
        running += 1
        await release.wait()
        await ctx.put_stream({"number": number})
        return number * 2

    async with worker:
        runs = [await client.submit(kind, number, stream=number == 0) for number in range(5)]
        results = [asyncio.ensure_future(run.result(seconds(BOUND_S))) for run in runs]
        chunks = asyncio.ensure_future(all_of(runs[0]))
        await eventually(lambda: running >= 5, BOUND_S)
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.DEBUG, "dagnats_worker.client"):
                await asyncio.to_thread(nats_server.kill)
                await eventually(lambda: caplog.text.count("reading it again") >= 6, BOUND_S)
            await asyncio.to_thread(nats_server.restart)
        release.set()
        async with asyncio.timeout(BOUND_S):
            assert await asyncio.gather(*results) == [0, 2, 4, 6, 8]
            await chunks


async def all_of(run: Run) -> list[bytes]:
    return [chunk async for chunk in run.stream()]


async def followed(client: Client) -> asyncio.Future[object]:
    """Somebody who waits for a run without an end, and has begun to."""
    subscriptions = subscribed(client)
    waiting = asyncio.ensure_future(client.run(unique(), "step").result())
    await eventually(lambda: subscribed(client) > subscriptions)
    return waiting


def subscribed(client: Client) -> int:
    return len(client.transport.nats._subs)  # type: ignore[attr-defined]  # of the real transport


async def test_no_event_is_told_twice_or_lost_over_outages(
    nats_server: EmbeddedServer, client: Client, js: JetStreamContext
) -> None:
    run_id, seen = unique(), []

    async def follow() -> None:
        events = client.run(run_id, "step").events()
        seen.extend([(event.sequence, event.payload) async for event in events])

    following = asyncio.create_task(follow())
    for number in range(30):
        if number % 10 == 5:
            await killed_and_back(nats_server)
        await publish_event(js, run_id, "step.started", number)
    await publish_event(js, run_id, "step.completed", 30)
    async with asyncio.timeout(BOUND_S):
        await following
    assert [payload for _, payload in seen] == list(range(31))
    assert len({sequence for sequence, _ in seen}) == 31
    assert len(await stored_events(js, run_id)) == 31


async def test_one_begins_to_wait_while_the_server_is_away(
    nats_server: EmbeddedServer, client: Client, js: JetStreamContext
) -> None:
    run_id = unique()
    await publish_event(js, run_id, "step.completed", 7)
    await asyncio.to_thread(nats_server.kill)
    await eventually(lambda: not client.transport.connected)
    waiting = asyncio.ensure_future(client.run(run_id, "step").result(seconds(BOUND_S)))
    await asyncio.sleep(CONFIG.request_timeout.total_seconds() * 1.5)  # a request has failed
    assert not waiting.done()
    await asyncio.to_thread(nats_server.restart)
    assert await waiting == 7


async def test_timeout_ends_the_wait_for_a_server_that_stays_away(
    nats_server: EmbeddedServer, client: Client
) -> None:
    waiting = asyncio.ensure_future(client.run(unique(), "step").result(seconds(0.5)))
    await asyncio.to_thread(nats_server.kill)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(BOUND_S):
            await waiting
    assert waiting.done(), "it was its own timeout"


@pytest.mark.parametrize("handed_over", [False, True], ids=["own", "handed over"])
async def test_connection_that_is_closed_ends_the_wait(
    nats_server: EmbeddedServer, *, handed_over: bool
) -> None:
    async with connected(nats_server.url) as nc:
        client = Client(nc if handed_over else nats_server.url, plugins=[], config=CONFIG)
        await client.connect()
        waiting = await followed(client)
        await client.close()
        with pytest.raises(TransportError, match=r"no longer followed: .* closed on this side"):
            async with asyncio.timeout(BOUND_S):
                await waiting


async def test_connection_that_the_server_refuses_ends_the_wait(
    nats_server: EmbeddedServer, client: Client
) -> None:
    waiting = await followed(client)
    await client.transport.nats.close()  # type: ignore[attr-defined]  # of the real transport
    with pytest.raises(TransportError, match="no longer followed: the server closed"):
        async with asyncio.timeout(BOUND_S):
            await waiting


async def test_server_without_jetstream_is_told_at_once(server_installed: None) -> None:
    with EmbeddedServer(config="jetstream: disabled") as server:
        async with Client(server.url, plugins=[], config=CONFIG) as client:
            with pytest.raises(TransportError, match="is it enabled on the server"):
                await client.run(unique(), "step").result(seconds(BOUND_S))


async def test_task_submitted_during_an_outage_is_queued_once(
    nats_server: EmbeddedServer, client: Client, js: JetStreamContext
) -> None:
    await asyncio.to_thread(nats_server.kill)
    submitting = asyncio.ensure_future(client.submit(unique(), 1))
    await asyncio.sleep(CONFIG.publish_timeout.total_seconds() * 1.5)  # into a second attempt
    assert not submitting.done()
    await asyncio.to_thread(nats_server.restart)
    run = await submitting
    assert not run.duplicate
    assert (await js.stream_info("TASK_QUEUES")).state.messages == 1


async def test_task_submitted_to_a_server_that_stays_away_is_refused_with_a_remedy(
    nats_server: EmbeddedServer,
) -> None:
    config = replace(CONFIG, publish_timeout=seconds(0.2), publish_attempts=2)
    kind, run_id = unique(), unique()
    async with Client(nats_server.url, plugins=[], config=config) as client:
        subscriptions = subscribed(client)
        await asyncio.to_thread(nats_server.kill)
        with pytest.raises(PublishError, match=f"submit it again with run_id='{run_id}'"):
            await client.submit(kind, 1, run_id=run_id, stream=True)
        assert subscribed(client) == subscriptions
        await asyncio.to_thread(nats_server.restart)
        await eventually(lambda: client.transport.connected, BOUND_S)
        await client.submit(kind, 1, run_id=run_id)
        async with connected(nats_server.url) as other:
            assert (await other.jetstream().stream_info("TASK_QUEUES")).state.messages == 1
