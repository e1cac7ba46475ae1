"""A plugin's own source of deliveries, written with nothing but what is published.

Method: a source on a consumer of its own, made with nats-py, in a worker on a real server; what it
was told and what is on the server afterwards is compared with what its protocol promises. Sources
that break are on the in-memory server. Fake: that server, where it is used.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import nats.errors
import pytest
from hook_support import plugin_with
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from plugin_workers import BOUND_S, QUICK, serving, worker_with
from support import eventually, publish_task, stored_events, unique
from worker_support import settled

from dagnats_worker import (
    Delivery,
    EmbeddedServer,
    Plugin,
    Slots,
    Source,
    TaskContext,
    TaskType,
    Worker,
    WorkerFacade,
    hookimpl,
)
from dagnats_worker.errors import PluginError, StartError

LEASE = timedelta(seconds=1)
WAIT_S = 0.2
CONFIG = replace(
    QUICK, redeliver_after=timedelta(milliseconds=100), hook_timeout=timedelta(seconds=5)
)


# ------------------------------------------------------------------------- the source


class OwnSource:
    """Pulls from a durable of its own; as a plugin's author would write it from the protocol."""

    def __init__(self, js: JetStreamContext, durable: str, **promises: bool) -> None:
        self.ack_wait = LEASE
        self.confirm_leases = promises.get("confirm_leases", False)
        self.fenced = promises.get("fenced", False)
        self.notes: list[str] = []
        self.settlements: list[tuple[int, int]] = []
        self.arrived: deque[Delivery] = deque()
        self._js = js
        self._durable = durable
        self._stopped = False
        self._ended = asyncio.Event()
        self._slots: Slots | None = None

    async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        self._slots = slots
        subscription = await self._js.pull_subscribe_bind(self._durable, stream="TASK_QUEUES")
        try:
            queued = True
            while not self._stopped:
                queued = await self._ask(subscription, slots, queued=queued)
                while self.arrived and not self._stopped:
                    yield self.arrived.popleft()
        finally:
            self._ended.set()

    async def _ask(
        self, subscription: JetStreamContext.PullSubscription, slots: Slots, *, queued: bool
    ) -> bool:
        """Ask for what there is room for; says whether more may be queued."""
        slots.changed.clear()
        if queued and (count := slots.free()):
            slots.ask(count)
            messages = await fetch(subscription, count)
            slots.take_back(count - len(messages))
            self._take(messages, slots, idle=False)
            return len(messages) == count
        if not queued and slots.may_idle():
            slots.ask_idle()
            messages = await fetch(subscription, 1)
            if not messages:
                slots.take_back(1, idle=True)
            self._take(messages, slots, idle=True)
            return bool(messages)
        slots.want()
        await slots.changed.wait()
        return queued

    def _take(self, messages: list[Msg], slots: Slots, *, idle: bool) -> None:
        for message in messages:
            slots.arrived(asked=True, idle=idle)
            meta = message.metadata
            self.arrived.append(
                Delivery(
                    message.subject,
                    message.data,
                    message.headers or {},
                    ack_subject=message.reply,
                    stream=meta.stream,
                    deliveries=meta.num_delivered,
                    sequence=meta.sequence.stream,
                    timestamp_ns=int(meta.timestamp.timestamp() * 1e9),
                )
            )

    def settled(self, delivery: Delivery) -> None:
        self.settlements.append((delivery.sequence, delivery.deliveries))

    async def stop(self) -> None:
        self.notes.append("stop")
        self._stopped = True
        if self._slots is not None:
            self._slots.changed.set()
            await self._ended.wait()
            while self.arrived:
                await self._js._nc.publish(self.arrived.popleft().ack_subject, b"-NAK")
                self._slots.settled()

    async def close(self) -> None:
        self.notes.append("close")


async def fetch(subscription: JetStreamContext.PullSubscription, count: int) -> list[Msg]:
    try:
        return await subscription.fetch(count, timeout=WAIT_S)
    except (TimeoutError, nats.errors.TimeoutError):
        return []


class OwnSources(Plugin[None]):
    """Brings one source for each task type, on a durable that it creates."""

    name: ClassVar[str] = "own-sources"

    def __init__(self, **promises: bool) -> None:
        super().__init__()
        self.promises = promises
        self.sources: list[OwnSource] = []

    @hookimpl
    async def open_source(self, worker: WorkerFacade, task: TaskType) -> Source:
        js: JetStreamContext = worker.jetstream
        durable = durable_of(task.name)
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=f"task.{task.name}.>",
            ack_wait=LEASE.total_seconds(),
        )
        await js.add_consumer("TASK_QUEUES", config)
        self.sources.append(OwnSource(js, durable, **self.promises))
        return self.sources[-1]

    @property
    def source(self) -> OwnSource:
        (source,) = self.sources
        return source


def durable_of(task_type: str) -> str:
    return f"own-{task_type}"


@asynccontextmanager
async def working(
    url: str, kind: str, handler: Callable[..., Any], *, max_tasks: int = 4, **promises: bool
) -> AsyncIterator[tuple[Worker, OwnSources]]:
    plugin = OwnSources(**promises)
    worker = Worker(url, plugins=[plugin], config=CONFIG, max_tasks=max_tasks)
    worker.handle(kind, handler)
    async with worker:
        yield worker, plugin


async def queued(js: JetStreamContext, kind: str) -> int:
    """How many tasks of a type nobody has acked."""
    info = await js.stream_info("TASK_QUEUES", subjects_filter=f"task.{kind}.>")
    return sum((info.state.subjects or {}).values())


# ------------------------------------------------------------------------- what it is told


async def test_tasks_are_run_and_each_delivery_is_settled_once(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, failing = unique(), {"first"}

    async def handler(ctx: TaskContext) -> str:
        if ctx.step_id in failing:
            failing.discard(ctx.step_id)
            raise ValueError("once")
        return "done"

    runs = [unique("r") for _ in range(12)]
    async with working(shared_server.url, kind, handler) as (worker, plugin):
        for number, run_id in enumerate(runs):
            await publish_task(js, kind, run_id, "first" if number == 0 else "step")
        await settled(js, kind)
        await eventually(lambda: len(plugin.source.settlements) == 13, BOUND_S)
        assert worker.stats().slots_in_use == 0
        assert plugin.source.notes == []
    assert plugin.source.notes == ["stop", "close"]
    settlements = plugin.source.settlements
    assert len(set(settlements)) == len(settlements) == 13
    assert sorted(count for _, count in settlements) == [1] * 12 + [2]
    for run_id in runs:
        assert "step.completed" in [event["type"] for event in await stored_events(js, run_id)]


async def test_durable_that_all_workers_share_is_not_made(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind = unique()

    async def handler(ctx: TaskContext) -> None: ...

    async with working(shared_server.url, kind, handler):
        names = [one.name for one in await js.consumers_info("TASK_QUEUES")]
        assert durable_of(kind) in names
        assert f"workers-{kind}" not in names


async def test_no_more_arrives_than_there_are_slots(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, running, most, release = unique(), set[str](), list[int](), asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        running.add(ctx.run_id)
        most.append(len(running))
        await release.wait()
        running.discard(ctx.run_id)

    async with working(shared_server.url, kind, handler, max_tasks=3) as (worker, _):
        for _ in range(9):
            await publish_task(js, kind, unique("r"))
        await eventually(lambda: len(running) == 3, BOUND_S)
        info = await js.consumer_info("TASK_QUEUES", durable_of(kind))
        assert info.num_ack_pending == 3
        release.set()
        await settled(js, kind)
        assert worker.stats().completed == 9
    assert max(most) == 3


async def test_drain_stops_the_source_first_and_closes_it_after_the_last_handler(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, entered, release = unique(), asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def handler(ctx: TaskContext) -> None:
        entered.set()
        await release.wait()
        order.extend([*plugin.source.notes, "handler ended"])

    async with working(shared_server.url, kind, handler) as (worker, plugin):
        run_id = unique("r")
        await publish_task(js, kind, run_id)
        async with asyncio.timeout(BOUND_S):
            await entered.wait()
            stopping = asyncio.create_task(worker.stop(timedelta(seconds=BOUND_S)))
            await eventually(lambda: plugin.source.notes == ["stop"], BOUND_S)
            later = unique("r")
            await publish_task(js, kind, later)
            release.set()
            await stopping
    assert order == ["stop", "handler ended"]
    assert plugin.source.notes == ["stop", "close"]
    assert not await stored_events(js, later), "it waits for another worker"


# ------------------------------------------------------------------------- leases and fences


@asynccontextmanager
async def watching(nc: NatsClient, kind: str) -> AsyncIterator[list[tuple[bytes, str]]]:
    """Every frame that is sent for the messages of the durable, and where it is to be answered."""
    frames: list[tuple[bytes, str]] = []

    async def note(message: Msg) -> None:
        frames.append((message.data, message.reply))

    subscription = await nc.subscribe(f"$JS.ACK.TASK_QUEUES.{durable_of(kind)}.>", cb=note)
    await nc.flush()
    yield frames
    await subscription.unsubscribe()


@pytest.mark.parametrize("confirmed", [True, False])
async def test_renewals_and_acks_are_requests_where_leases_are_confirmed(
    shared_server: EmbeddedServer, nc: NatsClient, js: JetStreamContext, *, confirmed: bool
) -> None:
    kind = unique()

    async def handler(ctx: TaskContext) -> None:
        await asyncio.sleep(LEASE.total_seconds() * 1.3)

    async with (
        watching(nc, kind) as frames,
        working(shared_server.url, kind, handler, confirm_leases=confirmed) as (worker, _),
    ):
        await publish_task(js, kind, unique("r"))
        await settled(js, kind)
        assert worker.stats().renewals >= 3
    kinds = [data for data, _ in frames]
    assert kinds.count(b"+WPI") >= 3
    assert kinds[-1] == b"+ACK"
    assert {bool(reply) for _, reply in frames} == {confirmed}


async def test_lease_that_nobody_confirms_is_lost_and_the_handler_with_it(
    shared_server: EmbeddedServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    kind, run_id = unique(), unique("r")
    entered, ended = asyncio.Event(), list[str]()

    async def handler(ctx: TaskContext) -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled" if ctx.cancelled.is_set() else "surprised")
            raise
        return "never"

    async with working(shared_server.url, kind, handler, confirm_leases=True) as (worker, plugin):
        await publish_task(js, kind, run_id)
        async with asyncio.timeout(BOUND_S):
            await entered.wait()
            await js.delete_consumer("TASK_QUEUES", durable_of(kind))
            await eventually(lambda: plugin.source.settlements, BOUND_S)
        assert ended == ["cancelled"]
        assert worker.stats().completed == 0
        events = [event["type"] for event in await stored_events(js, run_id)]
        assert events == ["step.started"], "nothing was published"
        assert await queued(js, kind) == 1, "and nothing was acked"
    assert "its lease was not confirmed" in caplog.text


async def test_every_outcome_of_a_fenced_source_expects_that_nobody_else_was_there(
    shared_server: EmbeddedServer, nc: NatsClient, js: JetStreamContext
) -> None:
    kind, run_id = unique(), unique("r")

    async def handler(ctx: TaskContext) -> None: ...

    async with working(shared_server.url, kind, handler, fenced=True):
        await publish_task(js, kind, run_id)
        await settled(js, kind)
    started = await js.get_msg("WORKFLOW_HISTORY", subject=f"history.{run_id}", seq=1, next=True)
    completed = await js.get_last_msg("WORKFLOW_HISTORY", f"history.{run_id}")
    assert completed.headers is not None
    expected = completed.headers["Nats-Expected-Last-Subject-Sequence"]
    assert expected == str(started.seq)


async def test_outcome_of_a_fenced_source_is_dropped_where_somebody_started_the_step_again(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, run_id = unique(), unique("r")
    entered, release = asyncio.Event(), asyncio.Event()

    async def handler(ctx: TaskContext) -> None:
        entered.set()
        await release.wait()

    async with working(shared_server.url, kind, handler, fenced=True) as (worker, plugin):
        await publish_task(js, kind, run_id)
        async with asyncio.timeout(BOUND_S):
            await entered.wait()
        other = f'{{"type":"step.started","run_id":"{run_id}","step_id":"step"'
        other += ',"timestamp":"2026-08-06T12:00:00Z","worker_id":"another","attempt_number":2}'
        await js.publish(f"history.{run_id}", other.encode())
        release.set()
        await eventually(lambda: plugin.source.settlements, BOUND_S)
        events = [event["type"] for event in await stored_events(js, run_id)]
        assert events == ["step.started", "step.started"]
        assert worker.stats().completed == 0


# ------------------------------------------------------------------------- sources that break


class Plain:
    """A source of prepared deliveries, each part of which can be replaced."""

    ack_wait = LEASE
    confirm_leases = False
    fenced = False

    def __init__(self, **parts: Any) -> None:
        self.notes: list[str] = []
        self.stopped = asyncio.Event()
        vars(self).update(parts)

    async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        await self.stopped.wait()
        for nothing in ():
            yield nothing

    def settled(self, delivery: Delivery) -> None: ...

    async def stop(self) -> None:
        self.notes.append("stop")
        self.stopped.set()

    async def close(self) -> None:
        self.notes.append("close")


def bringing(*sources: Any) -> Plugin[None]:
    remaining = list(sources)

    async def open_source() -> Any:
        found = remaining.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return plugin_with("own", open_source=open_source)


async def test_sources_that_are_open_are_closed_when_a_later_one_stops_the_start() -> None:
    first = Plain()
    worker = worker_with(required=[bringing(first, RuntimeError("no second"))])
    worker.handle("whisper", lambda text: None)
    with pytest.raises(Exception, match="plugin 'own', open_source: no second"):
        await worker.start()
    assert first.notes == ["stop", "close"]


async def test_plugin_that_refuses_the_start_is_heard_although_it_is_optional() -> None:
    worker = worker_with(optional=[bringing(StartError("somebody else takes these tasks"))])
    with pytest.raises(PluginError, match="plugin 'own', open_source: somebody else takes"):
        await worker.start()


async def test_optional_plugin_that_fails_otherwise_is_skipped() -> None:
    async with serving(optional=[bringing(RuntimeError("broken"))]) as harness:
        assert (await harness.run("shout", "x")).output == "HELLO"


async def test_source_that_breaks_stops_the_worker_and_is_named() -> None:
    async def breaks(_slots: Slots) -> AsyncIterator[Delivery]:
        raise RuntimeError("group is gone")
        yield

    worker = worker_with(required=[bringing(Plain(deliveries=breaks))])
    async with worker:
        async with asyncio.timeout(BOUND_S):
            reason = await worker.wait_stopped()
    assert reason.startswith("PluginError: source ")
    assert reason.endswith("test_custom_source.Plain: group is gone")


async def test_source_that_yields_what_is_no_delivery_is_named() -> None:
    async def yields(_slots: Slots) -> AsyncIterator[Any]:
        yield "a task"

    worker = worker_with(required=[bringing(Plain(deliveries=yields))])
    async with worker:
        async with asyncio.timeout(BOUND_S):
            assert "'a task' is not a Delivery" in await worker.wait_stopped()


@pytest.mark.parametrize("part", ["stop", "close"])
async def test_source_that_fails_or_hangs_at_its_end_holds_nothing_up(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise RuntimeError("still busy")

    async def hangs() -> None:
        await asyncio.Event().wait()

    for ending, says in ((fails, "still busy"), (hangs, f"{part} took longer than hook_timeout")):
        source = Plain(**{part: ending})
        async with asyncio.timeout(BOUND_S):
            async with serving(required=[bringing(source)]) as harness:
                assert harness.worker.state == "running"
            assert harness.worker.state == "stopped"
        assert says in caplog.text


async def test_source_that_fails_when_it_is_told_of_a_settlement_costs_no_slot(
    shared_server: EmbeddedServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    kind = unique()

    async def handler(ctx: TaskContext) -> None: ...

    async with working(shared_server.url, kind, handler, max_tasks=2) as (worker, plugin):

        def fails(_delivery: Delivery) -> None:
            raise RuntimeError("cannot count")

        plugin.source.settled = fails  # type: ignore[method-assign]  # what is tested
        for _ in range(6):
            await publish_task(js, kind, unique("r"))
        await settled(js, kind)
        assert worker.stats().completed == 6
    assert "cannot count" in caplog.text
