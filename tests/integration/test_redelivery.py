"""What happens to a task that is delivered more than once: it still ends exactly once.

Method: a real server; workers that really die, are frozen, or lose the streams that they need.
Fake: the engine, whose tasks these tests dispatch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from support import connected, eventually, publish_task, unique
from worker_process import worker_process
from worker_support import (
    MANAGED,
    OtherWorker,
    configured,
    dead_letters,
    event_types,
    history,
    queued,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import EmbeddedServer, TaskContext

COMPLETED_ONCE = ["step.started", "step.completed"]
GIVEN_BACK = b'-NAK {"delay": 200000000}'


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """Where the handlers of worker processes write what they do."""
    return tmp_path / "diary"


# ------------------------------------------------------------------------- events first, ack last


@pytest.mark.parametrize("start", ["sent", "confirmed"])
async def test_task_whose_start_cannot_be_stored_is_given_back_until_it_can(
    nats_server: EmbeddedServer, start: str
) -> None:
    task_type, run_id = unique(), unique()
    runs: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        runs.append(ctx.deliveries)

    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        config = configured(confirm_start=start == "confirmed")
        async with (
            watching_acks(nc, task_type) as acks,
            serving(nats_server.url, task_type, handler, config=config),
        ):
            stream = (await js.stream_info("WORKFLOW_HISTORY")).config
            await js.delete_stream("WORKFLOW_HISTORY")
            await publish_task(js, task_type, run_id)
            await eventually(lambda: len(acks.verdicts) >= 3)
            await js.add_stream(stream)
            await settled(js, task_type)
        assert set(acks.verdicts[:-1]) == {GIVEN_BACK}
        assert acks.verdicts[-1] == b"+ACK"
        assert await event_types(js, run_id) == COMPLETED_ONCE
        # A task that comes again is not run before its start is stored, so that a crash counts.
        assert runs == ([] if start == "confirmed" else [1]) + [len(acks.verdicts)]


@pytest.mark.parametrize("ending", ["completes", "fails"])
async def test_task_whose_outcome_cannot_be_stored_is_given_back_and_ends_once(
    nats_server: EmbeddedServer, ending: str
) -> None:
    task_type, run_id = unique(), unique()

    async with connected(nats_server.url) as nc:
        js = nc.jetstream()

        async def handler(ctx: TaskContext) -> None:
            if ctx.deliveries == 1:
                await eventually(lambda: event_types(js, run_id))
                await limit_history(js, (await js.stream_info("WORKFLOW_HISTORY")).state.messages)
            if ending == "fails":
                raise RuntimeError("no")

        async with (
            watching_acks(nc, task_type) as acks,
            serving(nats_server.url, task_type, handler),
        ):
            await publish_task(js, task_type, run_id, **MANAGED)
            await eventually(lambda: acks.verdicts)
            assert acks.verdicts == [GIVEN_BACK]
            assert await event_types(js, run_id) == ["step.started"]
            await limit_history(js, -1)
            await settled(js, task_type)
        last = "step.completed" if ending == "completes" else "step.failed"
        assert await event_types(js, run_id) == ["step.started", "step.started", last]
        assert acks.verdicts[-1] == b"+ACK"


async def limit_history(js: JetStreamContext, messages: int) -> None:
    """Make the history refuse what comes next, as a full stream does; -1 makes room again."""
    config = (await js.stream_info("WORKFLOW_HISTORY")).config
    config.max_msgs = messages
    config.discard = api.DiscardPolicy.NEW
    await js.update_stream(config)


async def test_server_without_direct_reads_of_the_history_answers_redeliveries_too(
    nats_server: EmbeddedServer, diary: Path
) -> None:
    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        config = (await js.stream_info("WORKFLOW_HISTORY")).config
        config.allow_direct = False  # as an engine makes it
        await js.update_stream(config)
        await lose_an_ack(nats_server, js, diary)


# ------------------------------------------------------------------------- the ack is lost

DIES_BEFORE_THE_ACK = """
class Dies(Plugin):
    name = "dies"

    @hookimpl
    def on_complete(self):
        if times("stored") == 0:
            note("stored")
            os._exit(1)

worker = Worker(url, plugins=[Dies()], config=QUICK)

@worker.task(task_type, ack_wait=LEASE)
async def handler(ctx: TaskContext) -> None:
    note("ran")
"""


async def test_outcome_that_is_stored_is_acked_later_and_its_handler_not_run_again(
    shared_server: EmbeddedServer, js: JetStreamContext, diary: Path
) -> None:
    await lose_an_ack(shared_server, js, diary)


async def lose_an_ack(server: EmbeddedServer, js: JetStreamContext, diary: Path) -> None:
    task_type, run_id = unique(), unique()
    with worker_process(server.url, task_type, diary, DIES_BEFORE_THE_ACK, respawn=True) as worker:
        await publish_task(js, task_type, run_id)
        await worker.wait_noted("stored")
        assert len(await queued(js, task_type)) == 1
        await settled(js, task_type)
        assert worker.noted("ran") == 1
    assert await event_types(js, run_id) == COMPLETED_ONCE


LOOPS = """
class Dies(Plugin):
    name = "dies"

    @hookimpl
    @asynccontextmanager
    async def outcome_scope(self, ctx):
        yield
        if DIES == "before the dispatch" and ctx.iteration == 1 and not times("died"):
            note("died")
            os._exit(1)

    @hookimpl
    def on_complete(self, ctx):
        if DIES == "after the dispatch" and ctx.iteration == 1 and not times("died"):
            note("died")
            os._exit(1)

worker = Worker(url, plugins=[Dies()], config=QUICK)

@worker.task(task_type, ack_wait=LEASE)
async def handler(ctx: TaskContext) -> None:
    note(f"ran {ctx.iteration}")
    if ctx.iteration < 4:
        ctx.continue_({"turn": ctx.iteration})
"""


@pytest.mark.parametrize("dies", ["never", "before the dispatch", "after the dispatch"])
async def test_loop_without_an_engine_runs_each_iteration_once(
    shared_server: EmbeddedServer, js: JetStreamContext, diary: Path, dies: str
) -> None:
    task_type, run_id = unique(), unique()
    code = f"DIES = {dies!r}\n{LOOPS}"
    with worker_process(shared_server.url, task_type, diary, code, respawn=True) as worker:
        await publish_task(js, task_type, run_id, input={"goal": 1})
        await worker.wait_noted("ran 4")
        await settled(js, task_type)
        assert [worker.noted(f"ran {turn}") for turn in range(6)] == [1, 1, 1, 1, 1, 0]
    types = await event_types(js, run_id)
    assert types == ["step.started", "step.continue"] * 4 + COMPLETED_ONCE


async def test_lost_ack_of_an_iteration_does_not_bury_a_loop_that_failed_later(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    other = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id, iteration=1)
    first = await other.take()
    await other.publish(first, "step.started", attempt_number=1)
    await other.publish(first, "step.continue")
    await publish_task(js, task_type, run_id, iteration=2, message_id=f"{run_id}.step.continue.2")
    second = await other.take()
    await other.publish(second, "step.started", attempt_number=1)
    failure = {"error": "no", "failure_type": "non_retriable"}
    await other.publish(second, "step.failed", attempt_number=1, payload=failure)
    await second.ack_sync()
    await first.nak()
    async with serving(shared_server.url, task_type, never):
        await settled(js, task_type)
    assert await dead_letters(js, task_type) == []
    assert len(await history(js, run_id)) == 4


async def test_loop_goes_on_after_a_crash_beside_a_loop_that_is_further(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    other = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id, "slow", iteration=1)
    slow = await other.take()
    await other.publish(slow, "step.started", attempt_number=1)
    await other.publish(slow, "step.continue")
    await publish_task(js, task_type, run_id, "fast", iteration=7)
    await slow.nak()
    ran: list[tuple[str, int]] = []

    async def handler(ctx: TaskContext) -> None:
        ran.append((ctx.step_id, ctx.iteration))

    async with serving(shared_server.url, task_type, handler):
        await eventually(lambda: len(ran) == 2)
    assert sorted(ran) == [("fast", 7), ("slow", 2)]


async def test_outcome_is_found_behind_more_events_than_one_answer_holds(
    shared_server: EmbeddedServer, nc: Client, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()
    other = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id)
    message = await other.take()
    for _ in range(2500):
        await nc.publish(f"history.{run_id}", b'{"type":"step.noise","run_id":"r","step_id":"x"}')
    await other.publish(message, "step.completed", attempt_number=1)
    async with serving(shared_server.url, task_type, never):
        await message.nak()
        await settled(js, task_type)


async def never(ctx: TaskContext) -> None:
    """Fails the test that runs it."""
    raise AssertionError(f"{ctx.task_id} is to be acked without running")
