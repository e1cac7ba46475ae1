"""Who gets a key, and for how long.

Method: the store alone, on the bucket of an in-memory server. Real: the store. Fake: the server,
and the time.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from dagnats_worker.errors import KeyValueError
from dagnats_worker.testing import MemoryServer, MemoryTransport

from dagnats_worker_idempotency._store import Claim, LostClaimError, Record, Store

TTL = timedelta(hours=1)
CLAIM_TTL = timedelta(minutes=1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock, memory_server: MemoryServer, memory_transport: MemoryTransport) -> Store:
    memory_server.add_bucket("keys")
    kv = memory_transport.key_value("keys")
    return Store(kv, ttl=TTL, claim_ttl=CLAIM_TTL, now=clock)


async def claimed(store: Store, task_id: str, key: str = "k") -> Claim:
    claim = await store.claim("charge", key, task_id)
    assert isinstance(claim, Claim)
    return claim


async def test_of_two_who_want_a_key_at_the_same_time_one_gets_it(store: Store) -> None:
    wanted = [store.claim("charge", "k", f"run-{n}.step") for n in range(10)]
    found = await asyncio.gather(*wanted)
    claims = [one for one in found if isinstance(one, Claim)]
    assert len(claims) == 1
    others = [one for one in found if isinstance(one, Record)]
    assert {one.task_id for one in others} == {claims[0].record.task_id}


async def test_claim_that_nobody_renews_ends(store: Store, clock: Clock) -> None:
    await claimed(store, "a")
    clock.now_s += CLAIM_TTL.total_seconds() - 1
    assert isinstance(await store.claim("charge", "k", "b"), Record)
    clock.now_s += 1
    assert not (await claimed(store, "b")).resumed


async def test_claim_that_is_renewed_lasts(store: Store, clock: Clock) -> None:
    claim = await claimed(store, "a")
    clock.now_s += CLAIM_TTL.total_seconds() / 2
    await store.keep(claim, timedelta(hours=3))
    clock.now_s += 3 * 3600
    assert isinstance(await store.claim("charge", "k", "b"), Record)


async def test_result_answers_until_its_time_is_over(store: Store, clock: Clock) -> None:
    await store.finish(await claimed(store, "a"), b'"out"\n')
    clock.now_s += TTL.total_seconds() - 1
    found = await store.claim("charge", "k", "b")
    assert isinstance(found, Record)
    assert (found.done, found.output) == (True, b'"out"\n')
    clock.now_s += 1
    await claimed(store, "b")


async def test_same_task_takes_over_its_own_claim_and_is_told(store: Store) -> None:
    first = await claimed(store, "a")
    second = await claimed(store, "a")
    assert second.resumed
    with pytest.raises(LostClaimError, match="taken over"):
        await store.finish(first, b"1")
    await store.finish(second, b"2")
    found = await store.claim("charge", "k", "a")
    assert isinstance(found, Record)
    assert found.output == b"2"


async def test_worker_that_stood_still_stores_no_result_over_another(
    store: Store, clock: Clock
) -> None:
    late = await claimed(store, "a")
    clock.now_s += CLAIM_TTL.total_seconds()
    await store.finish(await claimed(store, "b"), b"b")
    with pytest.raises(LostClaimError):
        await store.finish(late, b"a")
    await store.release(late)
    found = await store.claim("charge", "k", "c")
    assert isinstance(found, Record)
    assert found.output == b"b"


async def test_key_that_was_let_go_is_free_at_once(store: Store) -> None:
    claim = await claimed(store, "a")
    await store.release(claim)
    await store.keep(claim)
    await store.release(claim)
    assert not (await claimed(store, "b")).resumed


async def test_write_whose_answer_was_lost_is_not_taken_for_somebody_elses(
    store: Store, memory_server: MemoryServer
) -> None:
    claim = await claimed(store, "a")
    memory_server.faults.fail_publishes(subject="$KV.>", stored=True)
    with pytest.raises(KeyValueError):
        await store.keep(claim)
    await store.finish(claim, b"out")
    found = await store.claim("charge", "k", "b")
    assert isinstance(found, Record)
    assert found.output == b"out"


async def test_renewal_that_meets_the_end_leaves_the_result(store: Store) -> None:
    claim = await claimed(store, "a")
    await asyncio.gather(
        store.keep(claim), store.finish(claim, b"out"), store.keep(claim), store.keep(claim)
    )
    found = await store.claim("charge", "k", "b")
    assert isinstance(found, Record)
    assert found.done


async def test_entry_of_somebody_else_is_an_error(
    store: Store, memory_transport: MemoryTransport
) -> None:
    claim = await claimed(store, "a")
    await memory_transport.key_value("keys").put(claim.entry, b"hello")
    with pytest.raises(KeyValueError, match="not an entry of the idempotency guard"):
        await store.claim("charge", "k", "b")
