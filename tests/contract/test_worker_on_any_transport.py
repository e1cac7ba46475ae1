"""A whole worker on either transport: what it publishes, and what becomes of the message.

Method: every test runs twice, on ``MemoryTransport`` and on a real nats-server. Real: the worker,
its handlers, the bytes on the wire, which are written and read by hand here. Fake: the clock of the
in-memory server, which is moved where a real server is waited for.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from seams import BOUND_S, TASKS, BreakableSeam, Seam, events, publish, submit
from support import eventually, unique
from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import (
    NonRetryableError,
    Retry,
    RetryAfterError,
    StartError,
    SyncTaskContext,
    TaskContext,
    Worker,
    WorkerConfig,
)
from dagnats_worker._transport import Transport

LEASE = timedelta(seconds=1)
TWICE = Retry(stop=stop_after_attempt(2), wait=wait_fixed(0.2))
MANAGED = {"workflow_name": "resize-all"}


@pytest.fixture
async def transport(seam: Seam) -> Transport:
    """A connection of the test's own, beside the worker's."""
    return await seam.connect()


@asynccontextmanager
async def serving(
    seam: Seam,
    task_type: str,
    handler: Callable[..., Any],
    *,
    config: WorkerConfig | None = None,
    groups: tuple[str, ...] = (),
    max_tasks: int = 8,
    **options: Any,
) -> AsyncIterator[Worker]:
    """A worker of one task type."""
    worker = Worker(
        await seam.connect(),
        config=config or seam.config,
        plugins=(),
        groups=groups,
        max_tasks=max_tasks,
    )
    worker.handle(task_type, handler, **options)
    async with worker:
        yield worker


async def types(transport: Transport, run_id: str) -> list[str]:
    return [event["type"] for event in await events(transport, run_id)]


async def ended(seam: Seam, transport: Transport, run_id: str, kind: str) -> dict[str, Any]:
    """The event of this type, once it is there."""

    async def look() -> dict[str, Any] | None:
        found = [event for event in await events(transport, run_id) if event["type"] == kind]
        return found[-1] if found else None

    event: dict[str, Any] = await seam.eventually(look, what=f"{kind} of {run_id}")
    return event


async def acked(seam: Seam, transport: Transport, task_type: str, run_id: str) -> None:
    """Wait until the task has left the queue."""
    subject = f"task.{task_type}.{run_id}"

    async def look() -> bool:
        return subject not in await transport.newest(TASKS, [subject])

    await seam.eventually(look, what=f"{subject} is acked")


# ---------------------------------------------------------------------- outcomes


async def test_a_return_value_completes_the_step(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()

    async def double(value: int) -> dict[str, int]:
        return {"twice": 2 * value}

    async with serving(seam, task_type, double) as worker:
        await submit(transport, task_type, run_id, input=4)
        completed = await ended(seam, transport, run_id, "step.completed")
        await acked(seam, transport, task_type, run_id)
    assert completed["payload"] == {"twice": 8}
    assert completed["worker_id"] == worker.worker_id
    assert await types(transport, run_id) == ["step.started", "step.completed"]
    assert worker.stats().completed == 1


async def test_a_handler_in_a_thread_completes_the_step(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()
    loop_thread = threading.get_ident()

    def where(ctx: SyncTaskContext) -> bool:
        return threading.get_ident() == loop_thread

    async with serving(seam, task_type, where):
        await submit(transport, task_type, run_id)
        completed = await ended(seam, transport, run_id, "step.completed")
    assert completed["payload"] is False


async def test_an_engine_is_told_of_a_failure_and_the_task_is_acked(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()

    async def fail(ctx: TaskContext) -> None:
        raise ValueError("no luck")

    async with serving(seam, task_type, fail):
        await submit(transport, task_type, run_id, **MANAGED)
        failed = await ended(seam, transport, run_id, "step.failed")
        await acked(seam, transport, task_type, run_id)
    assert failed["payload"] == {"error": "no luck", "failure_type": "retriable"}


async def test_an_engine_is_told_when_to_try_again(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()

    async def limited(ctx: TaskContext) -> None:
        raise RetryAfterError("too many", timedelta(seconds=7))

    async with serving(seam, task_type, limited):
        await submit(transport, task_type, run_id, **MANAGED)
        failed = await ended(seam, transport, run_id, "step.failed")
    assert failed["payload"]["failure_type"] == "retry_after"
    assert failed["payload"]["retry_after_ms"] == 7000


async def test_without_an_engine_a_failure_is_tried_again_later(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    attempts: list[tuple[int, int]] = []

    async def flaky(ctx: TaskContext) -> str:
        attempts.append((ctx.attempt, ctx.deliveries))
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return "done"

    async with serving(seam, task_type, flaky, retry=TWICE):
        await submit(transport, task_type, run_id)
        await ended(seam, transport, run_id, "step.completed")
        await acked(seam, transport, task_type, run_id)
    assert attempts == [(1, 1), (2, 2)]
    assert await types(transport, run_id) == [
        "step.started",
        "step.released",
        "step.started",
        "step.completed",
    ]


async def test_without_an_engine_the_last_failure_leaves_a_dead_letter(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()

    async def fail(ctx: TaskContext) -> None:
        raise ValueError("never")

    async with serving(seam, task_type, fail, retry=TWICE):
        await submit(transport, task_type, run_id, input={"n": 1})
        failed = await ended(seam, transport, run_id, "step.failed")
        await acked(seam, transport, task_type, run_id)
    assert failed["payload"] == {"error": "never", "failure_type": "non_retriable"}
    letter = await dead_letter(transport, task_type, run_id)
    assert json.loads(letter)["input"] == {"n": 1}


async def test_without_an_engine_a_hopeless_failure_is_not_tried_again(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()

    async def fail(ctx: TaskContext) -> None:
        raise NonRetryableError("never")

    async with serving(seam, task_type, fail, retry=TWICE):
        await submit(transport, task_type, run_id)
        await ended(seam, transport, run_id, "step.failed")
        await acked(seam, transport, task_type, run_id)
    assert await types(transport, run_id) == ["step.started", "step.failed"]


async def test_an_input_of_the_wrong_type_fails_for_good(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()

    async def double(value: int) -> int:
        return 2 * value

    async with serving(seam, task_type, double):
        await submit(transport, task_type, run_id, input="four", **MANAGED)
        failed = await ended(seam, transport, run_id, "step.failed")
    assert failed["payload"]["failure_type"] == "non_retriable"


async def test_a_message_that_cannot_be_read_becomes_a_dead_letter(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    body = b'{"run_id":"%s", "step_id":"step", broken' % run_id.encode()

    async def never(ctx: TaskContext) -> None:
        pytest.fail("nothing can be read")

    async with serving(seam, task_type, never) as worker:
        await publish(transport, f"task.{task_type}.{run_id}", body)
        await acked(seam, transport, task_type, run_id)
        assert worker.stats().rejected == 1
    assert await dead_letter(transport, task_type, run_id) == body


async def test_the_next_turn_of_a_loop_follows(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()

    async def turn(ctx: TaskContext) -> None:
        if ctx.iteration < 2:
            ctx.continue_({"turn": ctx.iteration})
        else:
            ctx.complete("enough")

    async with serving(seam, task_type, turn):
        await submit(transport, task_type, run_id)
        await ended(seam, transport, run_id, "step.completed")
        await acked(seam, transport, task_type, run_id)
    found = await types(transport, run_id)
    assert found == ["step.started", "step.continue"] * 2 + ["step.started", "step.completed"]


async def test_a_listener_gets_the_chunks_of_a_stream(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def speak(ctx: TaskContext) -> None:
        for chunk in (b"one", b"two"):
            await ctx.put_stream(chunk)

    await transport.subscribe(
        f"stream.{run_id}.step", lambda _subject, data, _headers: heard.put_nowait(data)
    )
    await transport.flush()
    async with serving(seam, task_type, speak):
        await submit(transport, task_type, run_id)
        async with asyncio.timeout(BOUND_S):
            assert [await heard.get(), await heard.get()] == [b"one", b"two"]


# ---------------------------------------------------------------------- time


async def test_a_handler_that_takes_too_long_is_ended(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()
    cancelled = asyncio.Event()

    async def hang(ctx: TaskContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(seam, task_type, hang, timeout=timedelta(seconds=0.3)):
        await submit(transport, task_type, run_id, **MANAGED)
        failed = await ended(seam, transport, run_id, "step.failed")
    assert failed["payload"] == {"error": "timeout after 0.3 s", "failure_type": "retriable"}
    assert cancelled.is_set()


async def test_a_handler_keeps_its_task_for_longer_than_the_lease(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    started, go_on = asyncio.Event(), asyncio.Event()
    runs = 0

    async def slow(ctx: TaskContext) -> None:
        nonlocal runs
        runs += 1
        started.set()
        await go_on.wait()

    async with serving(seam, task_type, slow, ack_wait=LEASE) as worker:
        await submit(transport, task_type, run_id)
        async with asyncio.timeout(BOUND_S):
            await started.wait()
        for _ in range(4):
            await seam.let_pass(LEASE / 2)
        go_on.set()
        await ended(seam, transport, run_id, "step.completed")
        await acked(seam, transport, task_type, run_id)
        assert worker.stats().renewals >= 3
    assert runs == 1
    assert await types(transport, run_id) == ["step.started", "step.completed"]


async def test_a_task_without_renewal_comes_again_when_its_lease_ends(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx: TaskContext) -> None:
        started.set()
        await go_on.wait()

    async with serving(seam, task_type, slow, ack_wait=LEASE, heartbeat=False) as worker:
        await submit(transport, task_type, run_id)
        async with asyncio.timeout(BOUND_S):
            await started.wait()
        # It is never run beside itself, however often it comes.
        await seam.eventually(lambda: worker.stats().delivered > 1)
        go_on.set()
        await ended(seam, transport, run_id, "step.completed")
        await acked(seam, transport, task_type, run_id)
    assert await types(transport, run_id) == ["step.started", "step.completed"]


# ---------------------------------------------------------------------- many tasks


async def test_no_more_handlers_run_than_were_asked_for(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    runs = [unique() for _ in range(12)]
    running, most = 0, 0

    async def count(ctx: TaskContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    for run_id in runs:
        await submit(transport, task_type, run_id)
    async with serving(seam, task_type, count, concurrency=3) as worker:
        await seam.eventually(lambda: worker.stats().completed == len(runs))
    assert most == 3


async def test_two_workers_share_the_tasks(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    runs = [unique() for _ in range(8)]
    both = asyncio.Barrier(2)

    async def meet(ctx: TaskContext) -> None:
        async with asyncio.timeout(BOUND_S):
            await both.wait()

    async with (
        serving(seam, task_type, meet, max_tasks=1) as one,
        serving(seam, task_type, meet, max_tasks=1) as two,
    ):
        for run_id in runs:
            await submit(transport, task_type, run_id)
        await seam.eventually(lambda: one.stats().completed + two.stats().completed == len(runs))
        assert one.stats().completed == two.stats().completed == len(runs) / 2
        assert one.stats().redelivered == two.stats().redelivered == 0


async def test_a_worker_of_a_group_takes_the_tasks_of_the_group(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()

    async def done(ctx: TaskContext) -> str:
        return "gpu"

    async with serving(seam, task_type, done, groups=("gpu",)):
        await submit(transport, f"{task_type}.gpu", run_id)
        completed = await ended(seam, transport, run_id, "step.completed")
    assert completed["payload"] == "gpu"


async def test_task_types_that_overlap_do_not_start(seam: Seam) -> None:
    task_type = unique()

    async def done(ctx: TaskContext) -> None: ...

    async with serving(seam, task_type, done):
        with pytest.raises(StartError, match="would share tasks"):
            async with serving(seam, f"{task_type}.small", done):
                pytest.fail("started")


# ---------------------------------------------------------------------- the end


async def test_a_drained_worker_ends_what_runs_and_leaves_the_rest(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    running, waiting = unique(), unique()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx: TaskContext) -> None:
        started.set()
        await go_on.wait()

    async with serving(seam, task_type, slow, max_tasks=1) as worker:
        await submit(transport, task_type, running)
        async with asyncio.timeout(BOUND_S):
            await started.wait()
        stopping = asyncio.create_task(worker.stop())
        await seam.eventually(lambda: worker.state == "draining")
        await submit(transport, task_type, waiting)
        assert not stopping.done()
        go_on.set()
        async with asyncio.timeout(BOUND_S):
            await stopping
        assert worker.drained
    assert await types(transport, running) == ["step.started", "step.completed"]
    assert await types(transport, waiting) == []
    async with serving(seam, task_type, slow):
        await ended(seam, transport, waiting, "step.completed")


async def test_a_handler_that_outlives_the_drain_is_given_back(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    started, attempts = asyncio.Event(), []

    async def first_hangs(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        started.set()
        if ctx.deliveries == 1:
            await asyncio.Event().wait()

    async with serving(seam, task_type, first_hangs) as worker:
        await submit(transport, task_type, run_id)
        async with asyncio.timeout(BOUND_S):
            await started.wait()
        await worker.stop(timedelta(milliseconds=100))
        assert not worker.drained
    async with serving(seam, task_type, first_hangs):
        await ended(seam, transport, run_id, "step.completed")
    assert attempts == [1, 1]
    released = await ended(seam, transport, run_id, "step.released")
    assert released["payload"]["reason"] == "drain"


async def test_a_queued_task_of_a_cancelled_run_is_skipped(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    await submit(transport, task_type, run_id)
    await cancel(transport, run_id)

    async def never(ctx: TaskContext) -> None:
        pytest.fail("its run was cancelled")

    config = replace(seam.config, fresh_for=timedelta(microseconds=1))
    async with serving(seam, task_type, never, config=config) as worker:
        await acked(seam, transport, task_type, run_id)
        assert worker.stats().skipped == 1
    assert await types(transport, run_id) == ["workflow.cancelled"]


async def test_a_running_handler_of_a_cancelled_run_is_ended(
    seam: Seam, transport: Transport
) -> None:
    task_type, run_id = unique(), unique()
    started = asyncio.Event()

    async def hang(ctx: TaskContext) -> None:
        started.set()
        await asyncio.Event().wait()

    config = replace(seam.config, cancel_watch_after=timedelta(milliseconds=50))
    async with serving(seam, task_type, hang, config=config):
        await submit(transport, task_type, run_id)
        async with asyncio.timeout(BOUND_S):
            await started.wait()

        # Nobody sees from outside when the watch has begun, so the cancel is sent until it works.
        async def cancelled() -> bool:
            await transport.send(f"history.{run_id}", cancel_event(run_id))
            found = await transport.newest(TASKS, [f"task.{task_type}.{run_id}"])
            return not found

        await seam.eventually(cancelled)
    assert set(await types(transport, run_id)) == {"step.started", "workflow.cancelled"}


# ---------------------------------------------------------------------- trouble


async def test_a_deleted_consumer_does_not_stop_the_worker(
    seam: Seam, transport: Transport
) -> None:
    task_type, first, second = unique(), unique(), unique()

    async def done(ctx: TaskContext) -> None: ...

    async with serving(seam, task_type, done):
        await submit(transport, task_type, first)
        await acked(seam, transport, task_type, first)
        await seam.delete_consumer(TASKS, f"workers-{task_type}")
        await submit(transport, task_type, second)
        await acked(seam, transport, task_type, second)
    assert await types(transport, second) == ["step.started", "step.completed"]


async def test_a_cut_connection_loses_no_outcome(breakable: BreakableSeam) -> None:
    task_type, run_id = unique(), unique()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx: TaskContext) -> str:
        started.set()
        await go_on.wait()
        return "done"

    async with serving(breakable, task_type, slow) as worker:
        transport = await breakable.connect()
        await submit(transport, task_type, run_id)
        async with asyncio.timeout(BOUND_S):
            await started.wait()
        await breakable.cut()
        await eventually(lambda: not transport.connected)
        go_on.set()
        await eventually(lambda: worker.stats().publish_retries > 0)
        breakable.mend()
        completed = await ended(breakable, transport, run_id, "step.completed")
        await acked(breakable, transport, task_type, run_id)
    assert completed["payload"] == "done"
    assert await types(transport, run_id) == ["step.started", "step.completed"]


async def test_the_same_dispatch_twice_is_run_once(seam: Seam, transport: Transport) -> None:
    task_type, run_id = unique(), unique()
    runs = 0

    async def count(ctx: TaskContext) -> None:
        nonlocal runs
        runs += 1

    for _ in range(2):
        await submit(transport, task_type, run_id)
    async with serving(seam, task_type, count):
        await ended(seam, transport, run_id, "step.completed")
        await acked(seam, transport, task_type, run_id)
    assert runs == 1


def cancel_event(run_id: str) -> bytes:
    return json.dumps({"type": "workflow.cancelled", "run_id": run_id}).encode()


async def cancel(transport: Transport, run_id: str) -> None:
    await publish(transport, f"history.{run_id}", cancel_event(run_id))


async def dead_letter(transport: Transport, task_type: str, run_id: str) -> bytes:
    subject = f"dead.{task_type}.{run_id}.step"
    return (await transport.newest("DEAD_LETTERS", [subject]))[subject]
