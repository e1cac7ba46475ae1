"""One task runs for each key, and the others are answered with its result.

Method: a worker with the plugin runs tasks; what they end with, and how often the handler ran.
Real: the plugin and the worker. Fake: the server, which is in memory and can be broken.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from dagnats_worker import Client, NonRetryableError, TaskContext, Worker, WorkerConfig
from dagnats_worker.testing import Ack, FakeClock, MemoryServer, MemoryTransport, Nak, WorkerHarness

from dagnats_worker_idempotency import IDEMPOTENCY, IdempotencyPlugin, IdempotencySettings

BOUND_S = 10
QUICK = WorkerConfig(
    redeliver_after=timedelta(milliseconds=50),
    cancel_poll_every=timedelta(milliseconds=50),
    publish_attempts=2,
)
BUCKET = "KV_idempotency"


@dataclass
class Shop:
    """Charges orders, and counts how often it has."""

    charged: Counter[str] = field(default_factory=Counter)
    keys: list[str | None] = field(default_factory=list)
    resumed: list[bool] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_end.set()

    async def charge(self, ctx: TaskContext, order: dict[str, Any]) -> dict[str, Any]:
        guard = ctx.use(IDEMPOTENCY)
        self.keys.append(guard.key)
        self.resumed.append(guard.resumed)
        self.charged[str(order.get("id"))] += 1
        self.began.set()
        await self.may_end.wait()
        if self.failures:
            raise self.failures.pop()
        return {"receipt": sum(self.charged.values())}

    def worker(self, transport: MemoryTransport, **settings: Any) -> Worker:
        plugin = IdempotencyPlugin(IdempotencySettings(**settings))
        worker = Worker(transport, plugins=[plugin], config=QUICK)
        worker.handle("charge", self.charge, idempotency_key="id")
        worker.handle("refund", self.charge, idempotency_key="id")
        worker.handle("unguarded", self.charge)
        return worker

    def harness(self, **settings: Any) -> WorkerHarness:
        return WorkerHarness(self.worker(MemoryTransport(), **settings))


async def test_repeated_key_is_answered_with_the_stored_result() -> None:
    shop = Shop()
    async with shop.harness() as harness:
        first = await harness.run("charge", {"id": "o-1"})
        second = await harness.run("charge", {"id": "o-1"})
        other = await harness.run("charge", {"id": "o-2"})
    assert first.output == second.output == {"receipt": 1}
    assert other.output == {"receipt": 2}
    assert shop.charged == {"o-1": 1, "o-2": 1}
    assert shop.keys == ["o-1", "o-2"]


async def test_key_is_that_of_one_task_type() -> None:
    shop = Shop()
    async with shop.harness() as harness:
        await harness.run("charge", {"id": "o-1"})
        await harness.run("refund", {"id": "o-1"})
    assert shop.charged == {"o-1": 2}


async def test_task_type_without_the_option_is_not_guarded() -> None:
    shop = Shop()
    async with shop.harness() as harness:
        for _ in range(2):
            await harness.run("unguarded", {"id": "o-1"}, headers={"Idempotency-Key": "k"})
    assert shop.charged == {"o-1": 2}
    assert shop.keys == [None, None]


async def test_header_is_stronger_than_the_input() -> None:
    shop = Shop()
    async with shop.harness() as harness:
        for order in ("o-1", "o-2"):
            await harness.run("charge", {"id": order}, headers={"Idempotency-Key": "any / ключ"})
    assert shop.charged == {"o-1": 1}
    assert shop.keys == ["any / ключ"]


@pytest.mark.parametrize("order", [{}, {"id": ""}, {"id": None}, {"id": True}, {"id": {}}])
async def test_task_without_a_key_fails_for_good_and_says_where_it_was_looked_for(
    order: dict[str, Any],
) -> None:
    shop = Shop()
    async with shop.harness() as harness:
        result = await harness.run("charge", order)
    assert result.verdict == Ack()
    assert [event.type for event in result.events] == ["step.started", "step.failed"]
    failure = result.events[-1].payload
    assert failure["failure_type"] == "non_retriable"
    assert "at 'id', and the task no header Idempotency-Key" in failure["error"]
    assert not shop.charged


async def test_output_comes_back_byte_for_byte() -> None:
    plugin = IdempotencyPlugin(IdempotencySettings())
    worker = Worker(plugins=[plugin])

    @worker.task("nothing", idempotency_key="id")
    async def nothing(ctx: TaskContext) -> None:
        ctx.complete()

    @worker.task("large", idempotency_key="id")
    async def large(ctx: TaskContext) -> None:
        ctx.complete(b'{"n":12345678901234567890123,\n"x":1.50}')

    async with WorkerHarness(worker) as harness:
        for name in ("nothing", "large"):
            first = await harness.run(name, {"id": 1})
            second = await harness.run(name, {"id": 1})
            assert first.outcome == second.outcome


# ------------------------------------------------------------------------- at the same time


async def test_task_whose_key_is_taken_waits_and_then_has_its_result() -> None:
    shop = Shop()
    shop.may_end.clear()
    async with shop.harness(check_every=timedelta(seconds=3)) as harness:
        first = await harness.submit("charge", {"id": "o-1"})
        await shop.began.wait()
        waiting = await harness.run("charge", {"id": "o-1"})
        assert waiting.verdict == Nak(timedelta(seconds=3))
        assert not waiting.events
        shop.may_end.set()
        await harness.settled(first.run_id)
        harness.clock.advance(timedelta(seconds=3))
        assert (await harness.settled(waiting.run_id)).output == {"receipt": 1}
    assert shop.charged == {"o-1": 1}


async def test_of_many_tasks_with_one_key_one_runs_however_many_workers_there_are() -> None:
    shop, server = Shop(), MemoryServer()
    every = timedelta(milliseconds=10)
    workers = [shop.worker(MemoryTransport(server), check_every=every) for _ in range(3)]
    async with workers[0], workers[1], workers[2], Client(MemoryTransport(server)) as client:
        runs = [await client.submit("charge", {"id": f"o-{n % 4}"}) for n in range(40)]
        async with asyncio.timeout(BOUND_S):
            results = [await run.result() for run in runs]
    assert shop.charged == {f"o-{n}": 1 for n in range(4)}
    assert sorted({result["receipt"] for result in results}) == [1, 2, 3, 4]


# ------------------------------------------------------------------------- what fails


async def test_task_that_has_failed_for_good_lets_go_of_its_key() -> None:
    shop = Shop(failures=[NonRetryableError("card refused")])
    async with shop.harness() as harness:
        assert (await harness.run("charge", {"id": "o-1"})).error == "card refused"
        assert (await harness.run("charge", {"id": "o-1"})).output == {"receipt": 2}


async def test_task_that_is_to_be_tried_again_keeps_its_key() -> None:
    shop = Shop(failures=[RuntimeError("busy")])
    async with shop.harness() as harness:
        failed = await harness.run("charge", {"id": "o-1"})
        assert isinstance(failed.verdict, Nak)
        other = await harness.run("charge", {"id": "o-1"})
        assert isinstance(other.verdict, Nak)
        assert shop.charged == {"o-1": 1}
        harness.clock.advance(failed.verdict.delay)
        results = [await harness.settled(run) for run in (failed.run_id, other.run_id)]
    assert results[0].output == {"receipt": 2}
    assert shop.resumed == [False, True]


async def test_task_of_a_cancelled_run_lets_go_of_its_key() -> None:
    shop = Shop()
    shop.may_end.clear()
    async with shop.harness() as harness:
        run = await harness.submit("charge", {"id": "o-1"})
        await shop.began.wait()
        harness.clock.advance(timedelta(seconds=5))  # so long ago that its run is watched
        await run.cancel()
        await harness.settled(run.run_id)
        shop.may_end.set()
        assert (await harness.run("charge", {"id": "o-1"})).output == {"receipt": 2}


async def test_result_that_was_stored_is_published_when_the_task_comes_again() -> None:
    shop = Shop()
    shop.may_end.clear()
    async with shop.harness() as harness:
        run = await harness.submit("charge", {"id": "o-1"})
        await shop.began.wait()
        harness.faults.fail_publishes(QUICK.publish_attempts, "history.>")
        shop.may_end.set()
        given_back = await harness.settled(run.run_id)
        assert isinstance(given_back.verdict, Nak)
        harness.clock.advance(given_back.verdict.delay)
        again = await harness.settled(run.run_id)
    assert again.output == {"receipt": 1}
    assert shop.charged == {"o-1": 1}


async def test_worker_that_dies_between_claim_and_result_is_followed_by_the_same_task() -> None:
    shop = Shop()
    shop.may_end.clear()
    server = MemoryServer()
    dying = MemoryTransport(server)
    async with Client(MemoryTransport(server)) as client, shop.worker(dying):
        run = await client.submit("charge", {"id": "o-1"})
        await shop.began.wait()
        dying.end("killed")
        shop.may_end.set()
        async with shop.worker(MemoryTransport(server)):
            server.faults.redeliver()
            async with asyncio.timeout(BOUND_S):
                assert await run.result() == {"receipt": 2}
    assert shop.resumed == [False, True]


async def test_bucket_that_cannot_be_used_holds_the_task_back() -> None:
    shop = Shop()
    async with shop.harness(check_every=timedelta(seconds=3)) as harness:
        harness.faults.fill(BUCKET)
        result = await harness.run("charge", {"id": "o-1"})
        assert result.verdict == Nak(timedelta(seconds=3))
        assert not shop.charged
        harness.faults.clear()
        harness.clock.advance(timedelta(seconds=3))
        assert (await harness.settled(result.run_id)).output == {"receipt": 1}


async def test_claim_is_renewed_for_as_long_as_the_handler_runs() -> None:
    shop, server = Shop(), MemoryServer(clock=FakeClock())
    shop.may_end.clear()
    worker = shop.worker(MemoryTransport(server), claim_ttl=timedelta(milliseconds=30))
    async with WorkerHarness(worker, server=server) as harness:
        run = await harness.submit("charge", {"id": "o-1"})
        await shop.began.wait()
        first = until_of(server)
        async with asyncio.timeout(BOUND_S):
            async for _ in harness.transport.key_value("idempotency").watch(">"):
                if until_of(server) > first:
                    break
        shop.may_end.set()
        assert (await harness.settled(run.run_id)).output == {"receipt": 1}


def until_of(server: MemoryServer) -> float:
    """When the only record of the bucket ends."""
    head = server.messages(BUCKET)[-1].data.partition(b"\n")[0]
    until: float = json.loads(head)["until"]
    return until


@pytest.mark.parametrize("name", ["ttl", "claim_ttl", "check_every"])
def test_time_that_is_no_time_is_refused(name: str) -> None:
    changes: dict[str, Any] = {name: timedelta(0)}
    with pytest.raises(ValueError, match=f"{name} is longer than zero"):
        IdempotencySettings(**changes)
