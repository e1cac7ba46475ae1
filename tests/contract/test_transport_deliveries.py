"""What the core may expect of a source: which tasks arrive, when, how often, and for whom.

Method: every test runs twice, on ``MemoryTransport`` and on a real nats-server (the one that all
tests share). Real: the transports, their consumers and streams. Fake: the clock of the in-memory
server, which is moved where a real server is waited for.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from seams import TASKS, Reader, Seam, gone, publish, reading, settle_all, spec
from support import eventually, unique

from dagnats_worker._protocol import ACK, IN_PROGRESS, NAK, nak_frame, term_frame
from dagnats_worker._slots import Gate, Slots, WorkerSlots
from dagnats_worker._transport import ConsumerSpec, Transport
from dagnats_worker.errors import StartError

DELAY = timedelta(milliseconds=600)
LEASE = timedelta(seconds=1)


@pytest.fixture
async def transport(seam: Seam) -> Transport:
    return await seam.connect()


# ---------------------------------------------------------------------- deliveries


async def test_a_delivery_says_what_it_is(transport: Transport) -> None:
    task_type, run_id = unique(), unique()
    subject = f"task.{task_type}.{run_id}"
    async with reading(transport, spec(task_type)) as reader:
        sequence, _ = await publish(transport, subject, b'{"a":1}', traceparent="00-1")
        delivery = await reader.next()
        assert (delivery.subject, delivery.data) == (subject, b'{"a":1}')
        assert delivery.headers["traceparent"] == "00-1"
        assert (delivery.stream, delivery.sequence, delivery.deliveries) == (TASKS, sequence, 1)
        assert delivery.ack_subject.startswith("$JS.ACK.")
        await transport.send(delivery.ack_subject, ACK)
        reader.release(delivery)


async def test_what_was_queued_before_the_consumer_is_delivered(transport: Transport) -> None:
    task_type = unique()
    for n in range(5):
        await publish(transport, f"task.{task_type}.r{n}")
    async with reading(transport, spec(task_type)) as reader:
        arrived = [await reader.next() for _ in range(5)]
        assert [delivery.subject[-2:] for delivery in arrived] == ["r0", "r1", "r2", "r3", "r4"]
        await settle_all(transport, reader, arrived)


async def test_an_acked_task_is_gone_from_the_queue(transport: Transport) -> None:
    task_type = unique()
    subject = f"task.{task_type}.r"
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, subject)
        delivery = await reader.next()
        assert not await gone(transport, subject)
        await settle_all(transport, reader, [delivery])
        await eventually(lambda: gone(transport, subject))


async def test_an_ack_can_be_confirmed(transport: Transport) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r")
        delivery = await reader.next()
        assert await transport.request(delivery.ack_subject, ACK) == b""
        assert await gone(transport, f"task.{task_type}.r")
        reader.release(delivery)


async def test_a_task_that_is_given_back_comes_at_once(transport: Transport) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r")
        first = await reader.next()
        await transport.send(first.ack_subject, NAK)
        reader.release(first)
        second = await reader.next()
        assert (second.sequence, second.deliveries) == (first.sequence, 2)
        await settle_all(transport, reader, [second])


async def test_a_task_that_is_given_back_goes_to_who_is_idle(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type), concurrency=1) as busy:
        await publish(transport, f"task.{task_type}.r")
        held = await busy.next()
        async with reading(await seam.connect(), spec(task_type)) as idle:
            await eventually(lambda: not idle.slots.may_idle(), what="a pull is open")
            await transport.send(held.ack_subject, NAK)
            again = await idle.next()
            assert (again.sequence, again.deliveries) == (held.sequence, 2)
            await settle_all(transport, idle, [again])


async def test_a_task_that_is_given_back_for_a_while_comes_then(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r")
        first = await reader.next()
        await transport.send(first.ack_subject, nak_frame(DELAY))
        reader.release(first)
        # One that was given back for a while holds up nobody, and does not come before its time.
        await publish(transport, f"task.{task_type}.other")
        other = await reader.next()
        assert other.subject == f"task.{task_type}.other"
        await settle_all(transport, reader, [other])
        await eventually(lambda: unacked(seam, task_type, 1))
        await seam.let_pass(DELAY)
        second = await reader.next()
        assert (second.sequence, second.deliveries) == (first.sequence, 2)
        await settle_all(transport, reader, [second])


async def test_a_task_that_is_terminated_is_gone_from_the_queue(transport: Transport) -> None:
    task_type = unique()
    subject = f"task.{task_type}.r"
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, subject)
        delivery = await reader.next()
        await transport.send(delivery.ack_subject, term_frame("cannot be read"))
        reader.release(delivery)
        await eventually(lambda: gone(transport, subject))
    assert reader.arrived.empty()


async def test_a_lease_that_ends_brings_the_task_again(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type, LEASE)) as reader:
        assert reader.source.ack_wait == LEASE
        await publish(transport, f"task.{task_type}.r")
        first = await reader.next()
        await seam.let_pass(LEASE)
        second = await reader.next()
        assert (second.sequence, second.deliveries) == (first.sequence, 2)
        assert first.ack_subject != second.ack_subject
        reader.release(first)
        await settle_all(transport, reader, [second])


async def test_an_old_delivery_can_still_be_acked(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    subject = f"task.{task_type}.r"
    async with reading(transport, spec(task_type, LEASE)) as reader:
        await publish(transport, subject)
        first = await reader.next()
        await seam.let_pass(LEASE)
        second = await reader.next()
        await transport.send(first.ack_subject, ACK)
        await eventually(lambda: gone(transport, subject))
        reader.release(first)
        reader.release(second)


async def test_in_progress_keeps_the_lease(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type, LEASE)) as reader:
        await publish(transport, f"task.{task_type}.r")
        first = await reader.next()
        for _ in range(4):
            await seam.let_pass(LEASE * 0.4)
            await transport.send(first.ack_subject, IN_PROGRESS)
        await transport.flush()
        assert reader.arrived.empty()
        await settle_all(transport, reader, [first])


async def test_in_progress_of_any_connection_keeps_the_lease(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    other = await seam.connect()
    async with reading(transport, spec(task_type, LEASE)) as reader:
        await publish(transport, f"task.{task_type}.r")
        first = await reader.next()
        for _ in range(4):
            await seam.let_pass(LEASE * 0.4)
            await other.send(first.ack_subject, IN_PROGRESS)
        assert reader.arrived.empty()
        await settle_all(transport, reader, [first])


async def test_never_more_tasks_arrive_than_there_are_slots(transport: Transport) -> None:
    task_type = unique()
    for n in range(12):
        await publish(transport, f"task.{task_type}.r{n}")
    async with reading(transport, spec(task_type), concurrency=3) as reader:
        for _ in range(4):
            arrived = [await reader.next() for _ in range(3)]
            await transport.flush()
            assert reader.arrived.empty()
            await settle_all(transport, reader, arrived)
        assert reader.most_held == 3


async def test_a_busy_source_leaves_new_tasks_to_others(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    busy = reading(transport, spec(task_type), concurrency=1)
    free = reading(await seam.connect(), spec(task_type), concurrency=4)
    async with busy as reader:
        await publish(transport, f"task.{task_type}.r0")
        held = await reader.next()
        async with free as other:
            for n in range(1, 4):
                await publish(transport, f"task.{task_type}.r{n}")
            arrived = [await other.next() for _ in range(3)]
            assert reader.arrived.empty()
            await settle_all(transport, other, arrived)
        await settle_all(transport, reader, [held])


async def test_two_connections_share_a_queue(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    for n in range(6):
        await publish(transport, f"task.{task_type}.r{n}")
    async with (
        reading(transport, spec(task_type), concurrency=3) as one,
        reading(await seam.connect(), spec(task_type), concurrency=3) as two,
    ):
        first = [await one.next() for _ in range(3)]
        second = [await two.next() for _ in range(3)]
        runs = {delivery.subject for delivery in [*first, *second]}
        assert len(runs) == 6
        await settle_all(transport, one, first)
        await settle_all(transport, two, second)


async def test_what_has_arrived_and_is_not_taken_is_given_back_by_stop(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    for n in range(3):
        await publish(transport, f"task.{task_type}.r{n}")
    source = await transport.open_source(spec(task_type))
    slots = Slots(WorkerSlots(3), Gate(3))
    deliveries = source.deliveries(slots)
    held = await anext(deliveries)
    await eventually(lambda: slots.held == 3)
    await source.stop()
    assert [delivery async for delivery in deliveries] == []
    assert slots.held == 1
    async with reading(await seam.connect(), spec(task_type)) as other:
        given_back = [await other.next() for _ in range(2)]
        assert {delivery.subject[-2:] for delivery in given_back} == {"r1", "r2"}
        assert {delivery.deliveries for delivery in given_back} == {2}
        await settle_all(transport, other, given_back)
        await eventually(lambda: unacked(seam, task_type, 1))
        await transport.send(held.ack_subject, ACK)


async def test_what_a_handler_holds_is_not_given_back_by_stop(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    source = await transport.open_source(spec(task_type))
    reader = Reader(source, concurrency=4)
    await publish(transport, f"task.{task_type}.r0")
    held = await reader.next()
    await reader.close()
    await publish(transport, f"task.{task_type}.r1")
    async with reading(await seam.connect(), spec(task_type)) as other:
        delivery = await other.next()
        assert delivery.subject == f"task.{task_type}.r1"
        await eventually(lambda: unacked(seam, task_type, 2))
        await settle_all(transport, other, [delivery])
        await transport.send(held.ack_subject, ACK)


async def test_a_source_that_was_stopped_asks_for_nothing(transport: Transport) -> None:
    task_type = unique()
    source = await transport.open_source(spec(task_type))
    reader = Reader(source, concurrency=4)
    await publish(transport, f"task.{task_type}.r0")
    await settle_all(transport, reader, [await reader.next()])
    await reader.close()
    slots = reader.slots
    assert (slots.held, slots.asked, reader.worker_slots.free()) == (0, 0, 4)
    assert slots.may_idle()


async def test_a_deleted_consumer_is_made_again(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r0")
        await settle_all(transport, reader, [await reader.next()])
        await eventually(lambda: gone(transport, f"task.{task_type}.r0"))
        await seam.delete_consumer(TASKS, f"workers-{task_type}")
        await publish(transport, f"task.{task_type}.r1")
        delivery = await reader.next()
        assert (delivery.subject, delivery.deliveries) == (f"task.{task_type}.r1", 1)
        await settle_all(transport, reader, [delivery])


async def test_what_was_queued_when_the_consumer_was_lost_is_doubtful(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r0")
        held = await reader.next()
        assert not held.doubtful
        await seam.delete_consumer(TASKS, f"workers-{task_type}")
        again = await reader.next()
        assert (again.sequence, again.deliveries, again.doubtful) == (held.sequence, 1, True)
        reader.release(held)
        await settle_all(transport, reader, [again])
        await publish(transport, f"task.{task_type}.r1")
        new = await reader.next()
        assert not new.doubtful
        await settle_all(transport, reader, [new])


async def test_a_source_that_only_idles_takes_one_task_after_the_other(
    transport: Transport,
) -> None:
    worker_id = unique("w")
    task_type = unique()
    for n in range(3):
        await publish(transport, f"sticky.{task_type}.{worker_id}.r{n}")
    sticky = ConsumerSpec(
        "STICKY_TASKS",
        f"workers-{task_type}-workers-{worker_id}",
        f"sticky.{task_type}.{worker_id}.>",
        timedelta(seconds=30),
        inactive_threshold=timedelta(minutes=10),
    )
    async with reading(transport, sticky, concurrency=2, only_idle=True) as reader:
        for n in range(3):
            delivery = await reader.next()
            assert delivery.subject.endswith(f".r{n}")
            await settle_all(transport, reader, [delivery])


async def test_what_a_stream_with_limits_holds_stays_when_acked(transport: Transport) -> None:
    worker_id, task_type = unique("w"), unique()
    subject = f"sticky.{task_type}.{worker_id}.r"
    name = f"workers-{task_type}-workers-{worker_id}"
    sticky = ConsumerSpec("STICKY_TASKS", name, f"sticky.{task_type}.{worker_id}.>", LEASE)
    async with reading(transport, sticky, concurrency=1) as reader:
        await publish(transport, subject)
        await settle_all(transport, reader, [await reader.next()])
        await transport.flush()
        assert subject in await transport.newest("STICKY_TASKS", [subject])


# ---------------------------------------------------------------------- binding to a consumer


async def test_a_consumer_that_is_there_is_used_with_its_lease(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    await transport.open_source(spec(task_type, LEASE))
    other = await (await seam.connect()).open_source(spec(task_type))
    assert other.ack_wait == LEASE


async def test_the_lease_that_was_asked_for_is_set(seam: Seam, transport: Transport) -> None:
    task_type = unique()
    await transport.open_source(spec(task_type))
    await transport.open_source(spec(task_type, LEASE))
    source = await (await seam.connect()).open_source(spec(task_type))
    assert source.ack_wait == LEASE


async def test_a_name_with_another_filter_is_refused(transport: Transport) -> None:
    task_type = unique()
    await transport.open_source(spec(task_type))
    other = ConsumerSpec(TASKS, f"workers-{task_type}", f"task.{task_type}.gpu.>")
    with pytest.raises(StartError, match=r"exists with the filter .*two task types share"):
        await transport.open_source(other)


async def test_filters_that_overlap_are_refused(transport: Transport) -> None:
    task_type = unique()
    await transport.open_source(spec(task_type))
    other = ConsumerSpec(TASKS, f"workers-{task_type}-gpu", f"task.{task_type}.gpu.>")
    with pytest.raises(StartError, match=rf"workers-{task_type}' .*would share tasks"):
        await transport.open_source(other)


async def test_an_orphan_with_the_same_filter_is_removed(transport: Transport) -> None:
    task_type = unique()
    filter_subject = f"task.{task_type}.>"
    orphan = ConsumerSpec(
        TASKS, unique("orphan"), filter_subject, inactive_threshold=timedelta(minutes=5)
    )
    await transport.open_source(orphan)
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r")
        await settle_all(transport, reader, [await reader.next()])


async def test_a_missing_stream_is_named_with_a_remedy(transport: Transport) -> None:
    wanted = ConsumerSpec("NO_SUCH_STREAM", "workers-a", "task.a.>")
    with pytest.raises(StartError, match=r"stream NO_SUCH_STREAM not found.*setup"):
        await transport.open_source(wanted)


async def unacked(seam: Seam, task_type: str, count: int) -> bool:
    return await seam.unacked(TASKS, f"workers-{task_type}") == count
