"""What the in-memory server promises beyond the contract: faults, its clock, what is left out.

Method: a real worker on ``MemoryTransport``. Fake: the server and its clock; both are the subject.
What holds for a real server too is tested in ``contract/``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from support import eventually

from dagnats_worker import (
    Client,
    Plugin,
    Released,
    StartError,
    TaskContext,
    UsageError,
    Worker,
    WorkerConfig,
    hookimpl,
)
from dagnats_worker._transport import ConsumerSpec, Source
from dagnats_worker.errors import KeyValueError, PublishError
from dagnats_worker.testing import Ack, FakeClock, MemoryServer, MemoryTransport, Nak, Settlement

BOUND_S = 10
LEASE = timedelta(minutes=5)
DELAY = timedelta(milliseconds=50)
QUICK = WorkerConfig(publish_attempts=2, drain_timeout=timedelta(seconds=2))


class Seen:
    """Every verdict that the server is told."""

    def __init__(self, server: MemoryServer) -> None:
        self.settlements: asyncio.Queue[Settlement] = asyncio.Queue()
        server.on_settled(self.settlements.put_nowait)

    async def next(self) -> tuple[Any, int]:
        """The next verdict, and how often the message had been delivered."""
        async with asyncio.timeout(BOUND_S):
            settlement = await self.settlements.get()
        return settlement.verdict, settlement.deliveries


class Counting:
    """A handler that counts, and waits for a sign where it is told to."""

    def __init__(self, *, waits: bool = False) -> None:
        self.runs = 0
        self.cancelled = False
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        if not waits:
            self.go_on.set()

    async def __call__(self, ctx: TaskContext) -> str:
        self.runs += 1
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return ctx.worker_id


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> MemoryServer:
    return MemoryServer(clock=clock)


@asynccontextmanager
async def serving(
    server: MemoryServer,
    handler: Callable[..., Any],
    *,
    worker_id: str = "one",
    max_tasks: int = 4,
    plugins: Sequence[Plugin[Any]] = (),
    **options: Any,
) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(server)
    worker = Worker(
        transport, worker_id=worker_id, max_tasks=max_tasks, plugins=plugins, config=QUICK
    )
    worker.handle("work", handler, **options)
    async with worker:
        yield transport


def submit(server: MemoryServer, run_id: str) -> None:
    body = {"task_id": f"{run_id}.s", "run_id": run_id, "step_id": "s", "workflow_name": "w"}
    server.publish(f"task.work.{run_id}", json.dumps(body).encode())


def types(server: MemoryServer, run_id: str) -> list[str]:
    return [
        message.json()["type"]
        for message in server.messages("WORKFLOW_HISTORY", f"history.{run_id}")
    ]


async def started(handler: Counting) -> None:
    async with asyncio.timeout(BOUND_S):
        await handler.started.wait()


# ---------------------------------------------------------------------- faults of deliveries


async def test_a_task_whose_ack_was_lost_is_acked_again_and_not_run_again(
    server: MemoryServer, clock: FakeClock
) -> None:
    handler, seen = Counting(), Seen(server)
    server.faults.lose_acks()
    async with serving(server, handler):
        submit(server, "r")
        await eventually(lambda: types(server, "r") == ["step.started", "step.completed"])
        await eventually(lambda: server.faults.lost == 1)
        assert seen.settlements.empty()
        clock.advance(LEASE)
        assert await seen.next() == (Ack(), 2)
    assert handler.runs == 1
    assert server.messages("TASK_QUEUES") == []


async def test_a_lease_can_be_ended_at_once(server: MemoryServer) -> None:
    handler, seen = Counting(waits=True), Seen(server)
    async with serving(server, handler):
        submit(server, "r")
        await started(handler)
        assert server.faults.redeliver("task.other.>") == 0
        assert server.faults.redeliver("task.work.>") == 1
        handler.go_on.set()
        assert (await seen.next())[0] == Ack()
    assert handler.runs == 1


async def test_the_renewals_that_are_lost_end_the_lease(
    server: MemoryServer, clock: FakeClock
) -> None:
    slow, other = Counting(waits=True), Counting()
    server.faults.lose_renewals(times=3)
    async with (
        serving(server, slow, max_tasks=1),
        serving(server, other, worker_id="two"),
    ):
        submit(server, "r")
        await started(slow)
        clock.advance(LEASE)
        await started(other)
        slow.go_on.set()


async def test_who_slept_through_the_lease_publishes_nothing_any_more(
    server: MemoryServer,
) -> None:
    sleeper, other, seen = Counting(waits=True), Counting(), Seen(server)
    async with (
        serving(server, sleeper, max_tasks=1),
        serving(server, other, worker_id="two"),
    ):
        submit(server, "r")
        await started(sleeper)
        server.faults.jump(LEASE)
        assert await seen.next() == (Ack(), 2)
        sleeper.go_on.set()
    assert types(server, "r") == ["step.started", "step.started", "step.completed"]
    completed = server.messages("WORKFLOW_HISTORY")[-1].json()
    assert completed["payload"] == "two"


async def test_time_that_passes_renews_the_leases(server: MemoryServer, clock: FakeClock) -> None:
    handler, seen = Counting(waits=True), Seen(server)
    server.faults.lose_acks()  # a renewal is none of these
    async with serving(server, handler):
        submit(server, "r")
        await started(handler)
        clock.advance(10 * LEASE)
        assert server.faults.lost == 0
        server.faults.clear()
        handler.go_on.set()
        assert await seen.next() == (Ack(), 1)


async def test_a_lease_is_renewed_for_no_longer_than_its_handler_may_run(
    server: MemoryServer, clock: FakeClock
) -> None:
    handler, seen = Counting(waits=True), Seen(server)
    async with serving(server, handler, timeout=2 * LEASE):
        submit(server, "r")
        await started(handler)
        clock.advance(10 * LEASE)
        _, deliveries = await seen.next()
    assert deliveries > 1


class Confirming:
    """A source whose leases are lost when nobody confirms them, as a partitioned one has it."""

    confirm_leases = True
    fenced = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self.ack_wait = source.ack_wait
        self.deliveries = source.deliveries
        self.settled = source.settled
        self.stop = source.stop
        self.close = source.close


async def test_a_lease_that_is_not_confirmed_ends_the_handler(
    server: MemoryServer, clock: FakeClock
) -> None:
    handler = Counting(waits=True)

    class ConfirmingPlugin(Plugin[None]):
        name = "confirming"

        @hookimpl
        async def open_source(self) -> Source:
            spec = ConsumerSpec("TASK_QUEUES", "c", "task.work.>", LEASE)
            return Confirming(await MemoryTransport(server).open_source(spec))

    async with serving(server, handler, plugins=[ConfirmingPlugin()]):
        submit(server, "r")
        await started(handler)
        clock.advance(LEASE / 2)
        assert server.faults.lost == 0
        server.faults.lose_renewals()
        clock.advance(LEASE / 2)
        await eventually(lambda: handler.cancelled)
    assert types(server, "r") == ["step.started"]


async def test_a_time_limit_follows_the_clock(server: MemoryServer, clock: FakeClock) -> None:
    handler = Counting(waits=True)
    async with serving(server, handler, timeout=timedelta(hours=1)):
        submit(server, "r")
        await started(handler)
        clock.advance(timedelta(hours=2))
        await eventually(lambda: types(server, "r") == ["step.started", "step.failed"])
    assert (
        server.messages("WORKFLOW_HISTORY")[-1].json()["payload"]["error"] == "timeout after 3600 s"
    )


async def test_only_a_clock_that_is_moved_can_jump() -> None:
    with pytest.raises(UsageError, match="FakeClock"):
        MemoryServer().faults.jump(LEASE)


async def test_without_a_clock_of_its_own_time_passes_by_itself() -> None:
    server = MemoryServer()
    seen = Seen(server)

    async def once_later(ctx: TaskContext) -> None:
        if ctx.deliveries == 1:
            ctx.record(Released("delay", DELAY))

    async with serving(server, once_later):
        submit(server, "r")
        assert await seen.next() == (Nak(DELAY), 1)
        assert await seen.next() == (Ack(), 2)


# ---------------------------------------------------------------------- faults of publishing


@pytest.mark.parametrize("stored", [False, True])
async def test_an_event_whose_publish_failed_is_stored_once(
    server: MemoryServer, *, stored: bool
) -> None:
    handler, seen = Counting(), Seen(server)
    server.faults.fail_publishes(times=1, subject="history.>", stored=stored)
    async with serving(server, handler):
        submit(server, "r")
        assert await seen.next() == (Ack(), 1)
    assert types(server, "r") == ["step.started", "step.completed"]


async def test_a_task_whose_events_cannot_be_stored_is_given_back(server: MemoryServer) -> None:
    handler, seen = Counting(), Seen(server)
    server.faults.fill("WORKFLOW_HISTORY")
    async with serving(server, handler):
        submit(server, "r")
        assert await seen.next() == (Nak(QUICK.redeliver_after), 1)
        assert types(server, "r") == []
        server.faults.clear()
        server.faults.redeliver()
        assert await seen.next() == (Ack(), 2)
    assert types(server, "r") == ["step.started", "step.completed"]


async def test_the_code_of_a_failing_publish_can_be_chosen(server: MemoryServer) -> None:
    server.faults.fail_publishes(subject="history.r", code=10023)
    transport = MemoryTransport(server)
    with pytest.raises(PublishError) as raised:
        await (await transport.publish("history.r", b"{}", {}))
    assert raised.value.code == 10023
    assert server.messages("WORKFLOW_HISTORY") == []
    await (await transport.publish("history.r", b"{}", {}))


async def test_a_message_can_be_stored_and_the_answer_be_lost(server: MemoryServer) -> None:
    server.faults.fail_publishes(subject="history.r", stored=True)
    with pytest.raises(PublishError, match="did not answer") as raised:
        await (await MemoryTransport(server).publish("history.r", b"{}", {}))
    assert raised.value.code == 0
    assert len(server.messages("WORKFLOW_HISTORY")) == 1


async def test_an_answer_comes_as_late_as_it_is_told_to(
    server: MemoryServer, clock: FakeClock
) -> None:
    server.faults.delay_publishes(timedelta(seconds=3), subject="history.>")
    transport = MemoryTransport(server)
    late = await transport.publish("history.r", b"{}", {})
    await transport.flush()
    assert not late.done()
    assert len(server.messages("WORKFLOW_HISTORY")) == 1
    clock.advance(timedelta(seconds=3))
    assert (await late).sequence == 1


async def test_a_redelivery_whose_history_cannot_be_read_is_given_back(
    server: MemoryServer,
) -> None:
    handler, seen = Counting(), Seen(server)
    server.faults.lose_acks()
    async with serving(server, handler):
        submit(server, "r")
        await eventually(lambda: server.faults.lost == 1)
        server.faults.fail_reads()
        server.faults.redeliver()
        assert await seen.next() == (Nak(QUICK.redeliver_after), 2)
    assert handler.runs == 1


# ---------------------------------------------------------------------- connections


async def test_a_dropped_connection_ends_its_pulls_and_comes_back(server: MemoryServer) -> None:
    handler, seen = Counting(), Seen(server)
    async with serving(server, handler) as transport:
        submit(server, "before")
        assert await seen.next() == (Ack(), 1)
        transport.drop()
        await transport.flush()
        submit(server, "r")
        assert not transport.connected
        assert server.consumers["TASK_QUEUES", "workers-work"].pending == {}
        transport.restore()
        assert await seen.next() == (Ack(), 1)


async def test_a_connection_that_is_closed_for_good_ends_the_worker(server: MemoryServer) -> None:
    transport = MemoryTransport(server)
    worker = Worker(transport, plugins=())
    worker.handle("work", Counting())
    async with worker:
        transport.end("the account was deleted")
        async with asyncio.timeout(BOUND_S):
            assert await worker.wait_stopped() == "the account was deleted"


async def test_an_engine_can_be_played(server: MemoryServer) -> None:
    asked = []

    def start(subject: str, data: bytes) -> bytes:
        asked.append((subject, json.loads(data)))
        return b'{"run_id":"r1"}'

    server.respond("api.runs.start", start)
    async with Client(MemoryTransport(server), plugins=()) as client:
        run = await client.start_workflow("resize-all", {"n": 1})
    assert run.run_id == "r1"
    assert asked == [("api.runs.start", {"workflow": "resize-all", "input": {"n": 1}})]


# ---------------------------------------------------------------------- streams and buckets


async def test_a_message_id_is_forgotten_after_the_window(
    server: MemoryServer, clock: FakeClock
) -> None:
    headers = {"Nats-Msg-Id": "a"}
    assert not server.publish("history.r", b"{}", headers).duplicate
    clock.advance(timedelta(seconds=4))
    assert server.publish("history.r", b"{}", headers).duplicate
    clock.advance(timedelta(seconds=1))
    assert not server.publish("history.r", b"{}", headers).duplicate


async def test_a_key_expires_with_the_time_to_live_of_its_bucket(
    server: MemoryServer, clock: FakeClock
) -> None:
    bucket = MemoryTransport(server).key_value("workers")
    await bucket.put("w1", b"{}")
    clock.advance(timedelta(seconds=59))
    assert await bucket.keys() == ["w1"]
    clock.advance(timedelta(seconds=1))
    assert await bucket.keys() == []


async def test_messages_that_wait_fill_the_consumer(server: MemoryServer) -> None:
    seen = Seen(server)

    async def later(ctx: TaskContext) -> None:
        ctx.record(Released("delay", DELAY))

    async with serving(server, later):
        consumer = server.consumers["TASK_QUEUES", "workers-work"]
        consumer.config["max_ack_pending"] = 3
        for n in range(5):
            submit(server, f"r{n}")
        for _ in range(3):
            await seen.next()
        assert len(consumer.pending) == 3
        assert not consumer.has_more


async def test_a_worker_names_the_stream_that_is_missing() -> None:
    with pytest.raises(StartError, match=r"DEAD_LETTERS not found.*setup"):
        async with serving(MemoryServer(without=["DEAD_LETTERS"]), Counting()):
            pytest.fail("started")


async def test_a_bucket_can_be_left_out_and_another_one_added() -> None:
    server = MemoryServer(without=["checkpoints"])
    server.add_bucket("parked_tasks")
    transport = MemoryTransport(server)
    with pytest.raises(KeyValueError, match="'checkpoints' not found"):
        await transport.key_value("checkpoints").get("a")
    assert await transport.key_value("parked_tasks").put("a", b"1") == 1


async def test_a_consumer_is_created_once_and_changed_only_on_purpose(
    server: MemoryServer,
) -> None:
    transport = MemoryTransport(server)
    config = {"name": "c", "filter_subject": "task.a.>", "ack_wait": 1_000_000_000}
    changed = {**config, "ack_wait": 2_000_000_000}
    subject = "CONSUMER.CREATE.TASK_QUEUES.c.task.a.>"
    missing = await transport.api(subject, {"config": changed, "action": "update"})
    assert missing["error"]["err_code"] == 10149
    for _ in range(2):
        assert "error" not in await transport.api(subject, {"config": config, "action": "create"})
    refused = await transport.api(subject, {"config": changed, "action": "create"})
    assert refused["error"]["err_code"] == 10148
    await transport.api(subject, {"config": changed, "action": "update"})
    assert server.consumers["TASK_QUEUES", "c"].ack_wait == timedelta(seconds=2)
    await transport.api("CONSUMER.DELETE.TASK_QUEUES.c")
    assert server.consumers == {}


def test_what_is_left_out_must_exist() -> None:
    with pytest.raises(ValueError, match=r"no 'checkpoint' to leave out; there are .*checkpoints"):
        MemoryServer(without=["checkpoint"])
