"""Two workers, or two deliveries, for one task: one outcome, and nobody runs it beside himself.

Method: a real server; workers in processes that are frozen and thawed by signals, and a worker
whose transport, a real one, is told to lose an answer. Fake: the engine.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from support import connected, eventually, publish_task, unique
from worker_process import WorkerProcess, worker_process
from worker_support import (
    LEASE,
    MANAGED,
    QUICK,
    configured,
    event_types,
    history,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import EmbeddedServer, TaskContext, Worker
from dagnats_worker._jetstream.transport import connect
from dagnats_worker._transport import Stored
from dagnats_worker.errors import PublishError

COMPLETED_ONCE = ["step.started", "step.completed"]


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """Where the handlers of worker processes write what they do."""
    return tmp_path / "diary"


# ------------------------------------------------------------------------- zombies

LINGERS = """
worker = Worker(url, plugins=[], config=configured(go_ids=GO_IDS))

@worker.task(task_type, ack_wait=LEASE)
async def handler(ctx: TaskContext) -> str:
    note(f"started {os.getpid()}")
    while not times(f"go {os.getpid()}"):
        await asyncio.sleep(0.02)
    note(f"ended {os.getpid()}")
    return str(os.getpid())
"""


@pytest.mark.parametrize(
    ("other", "ids"), [("has completed", "own"), ("still runs", "own"), ("still runs", "Go's")]
)
async def test_frozen_worker_that_wakes_up_does_not_end_a_task_that_another_one_took(
    shared_server: EmbeddedServer, js: JetStreamContext, diary: Path, other: str, ids: str
) -> None:
    task_type, run_id = unique(), unique()
    code = f"GO_IDS = {ids != 'own'}\n{LINGERS}"
    with (
        worker_process(shared_server.url, task_type, diary, code) as first,
        worker_process(shared_server.url, task_type, diary, code) as second,
    ):
        await publish_task(js, task_type, run_id, attempt=2, **MANAGED)
        await eventually(lambda: any(noted_start(one) for one in (first, second)))
        frozen, healthy = (first, second) if noted_start(first) else (second, first)
        frozen.signal(signal.SIGSTOP)
        await healthy.wait_noted(f"started {healthy.process.pid}")
        let_end(diary, frozen.process.pid)
        if other == "has completed":
            let_end(diary, healthy.process.pid)
            await settled(js, task_type)
        frozen.signal(signal.SIGCONT)
        await frozen.wait_noted(f"ended {frozen.process.pid}")
        if other == "still runs":
            let_end(diary, healthy.process.pid)
            await settled(js, task_type)
        for worker in (first, second):
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0
        assert frozen.noted(f"started {frozen.process.pid}") == 1
        events = await history(js, run_id)
        assert [event.type for event in events] == ["step.started", *COMPLETED_ONCE]
        assert events[-1].body["payload"] == str(healthy.process.pid)


async def test_task_that_was_sent_to_a_frozen_worker_is_not_run_by_it_when_it_wakes_up(
    shared_server: EmbeddedServer, js: JetStreamContext, diary: Path
) -> None:
    task_type, first_run, run_id = unique(), unique(), unique()
    code = f"GO_IDS = False\n{LINGERS}"
    with worker_process(shared_server.url, task_type, diary, code) as frozen:
        let_end(diary, frozen.process.pid)
        await publish_task(js, task_type, first_run)
        await settled(js, task_type)
        await eventually(lambda: waiting_pulls(js, task_type))
        frozen.signal(signal.SIGSTOP)
        await publish_task(js, task_type, run_id)
        await eventually(lambda: unacked(js, task_type), what="it lies in the frozen one's socket")
        with worker_process(shared_server.url, task_type, diary, code) as healthy:
            let_end(diary, healthy.process.pid)
            await settled(js, task_type)
        frozen.signal(signal.SIGCONT)
        last_run = unique()
        await publish_task(js, task_type, last_run)  # comes after what lies there
        await settled(js, task_type)
        assert await event_types(js, last_run) == COMPLETED_ONCE
        assert frozen.noted(f"started {frozen.process.pid}") == 2
    assert await event_types(js, run_id) == COMPLETED_ONCE


async def test_lease_that_ran_while_the_worker_was_frozen_is_renewed_at_once(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext, diary: Path
) -> None:
    task_type, run_id = unique(), unique()
    code = f"GO_IDS = False\n{LINGERS}".replace("=LEASE", "=2 * LEASE")
    loop = asyncio.get_running_loop()
    with worker_process(shared_server.url, task_type, diary, code) as frozen:
        await eventually(lambda: waiting_pulls(js, task_type))
        frozen.signal(signal.SIGSTOP)
        await publish_task(js, task_type, run_id)
        await eventually(lambda: unacked(js, task_type), what="it lies in the frozen one's socket")
        almost_over = loop.time() + LEASE.total_seconds() * 1.5
        await eventually(lambda: loop.time() > almost_over)
        async with watching_acks(nc, task_type) as acks:
            frozen.signal(signal.SIGCONT)
            await eventually(lambda: len(acks.frames) >= 3, what="renewals beyond the first lease")
            info = await js.consumer_info("TASK_QUEUES", f"workers-{task_type}")
            let_end(diary, frozen.process.pid)
            await settled(js, task_type)
    assert info.num_redelivered == 0
    assert await event_types(js, run_id) == COMPLETED_ONCE


async def waiting_pulls(js: JetStreamContext, task_type: str) -> int:
    """How many pulls are open; the consumer may not be there yet."""
    with suppress(NotFoundError):
        return (await js.consumer_info("TASK_QUEUES", f"workers-{task_type}")).num_waiting or 0
    return 0


async def unacked(js: JetStreamContext, task_type: str) -> int:
    return (await js.consumer_info("TASK_QUEUES", f"workers-{task_type}")).num_ack_pending or 0


def noted_start(worker: WorkerProcess) -> bool:
    return bool(worker.noted(f"started {worker.process.pid}"))


def let_end(diary: Path, process_id: int) -> None:
    with diary.open("a") as file:
        file.write(f"go {process_id}\n")


async def test_parallel_steps_whose_leases_have_lapsed_end_all_at_the_same_moment(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id, steps = unique(), unique(), 64
    lapsed = asyncio.Event()
    started: list[str] = []

    async def handler(ctx: TaskContext) -> None:
        started.append(ctx.step_id)
        await lapsed.wait()

    config = configured(history_events_max=20)  # what is read at once is less than there is
    async with serving(
        shared_server.url, task_type, handler, config=config, ack_wait=LEASE, max_tasks=steps
    ):
        for step in range(steps):
            await publish_task(js, task_type, run_id, f"map.{step}")
        await eventually(lambda: len(started) == steps)
        asyncio.get_running_loop().call_later(LEASE.total_seconds(), lapsed.set)
        await settled(js, task_type)
    assert len(started) == steps
    types = await event_types(js, run_id)
    assert (types.count("step.started"), types.count("step.completed")) == (steps, steps)


async def test_message_that_is_held_is_not_run_beside_itself_when_its_lease_is_not_renewed(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    let_end = asyncio.Event()
    runs: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        runs.append(ctx.deliveries)
        await let_end.wait()

    async with serving(
        shared_server.url, task_type, handler, ack_wait=timedelta(seconds=0.3), heartbeat=False
    ) as worker:
        await publish_task(js, task_type, run_id)
        await eventually(lambda: worker.stats().delivered >= 3)
        assert runs == [1]
        let_end.set()
        await settled(js, task_type)
        await eventually(lambda: worker.stats().slots_in_use == 0)
    assert runs == [1]
    assert await event_types(js, run_id) == COMPLETED_ONCE


# ------------------------------------------------------------------------- lost answers


@pytest.mark.parametrize("ending", ["completes", "continues"])
async def test_outcome_whose_answer_is_lost_is_stored_once_even_when_its_id_is_forgotten(
    nats_server: EmbeddedServer, ending: str
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        if ending == "continues" and not ctx.iteration:
            ctx.continue_()

    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        await remember_ids_for(js, 0.1)
        transport = await connect(nats_server.url, QUICK, name="forgetful")
        publish = transport.publish
        lost: list[str] = []

        async def lose_the_first_answer(
            subject: str, data: bytes, headers: dict[str, str]
        ) -> asyncio.Future[Stored]:
            future = await publish(subject, data, headers)
            kind = msgspec.json.decode(data).get("type")
            if not lost and kind in ("step.completed", "step.continue"):
                lost.append(kind)
                await future
                await eventually(lambda: forgets_ids(js), what="a younger id is forgotten too")
                future = asyncio.get_running_loop().create_future()
                future.set_exception(PublishError("the answer is lost"))
            return future

        transport.publish = lose_the_first_answer  # type: ignore[method-assign]  # a fault
        worker = Worker(transport, plugins=[], config=QUICK)
        worker.handle(task_type, handler)
        async with worker:
            await publish_task(js, task_type, run_id)
            await settled(js, task_type)
        expected = ["step.started", "step.continue"] if ending == "continues" else []
        assert await event_types(js, run_id) == [*expected, *COMPLETED_ONCE]
        assert len(lost) == 1


async def remember_ids_for(js: JetStreamContext, window_s: float) -> None:
    config = (await js.stream_info("WORKFLOW_HISTORY")).config
    config.duplicate_window = window_s
    await js.update_stream(config)


async def forgets_ids(js: JetStreamContext) -> bool:
    """Whether the history has taken one id, which it did not know at the first call, twice."""
    await js.publish("history.probe", b"{}", headers={"Nats-Msg-Id": "younger"})
    info = await js.stream_info("WORKFLOW_HISTORY", subjects_filter="history.probe")
    return (info.state.subjects or {})["history.probe"] > 1
