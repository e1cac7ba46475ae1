"""What the core may expect of a transport, whichever it is.

Method: every test runs twice, on ``MemoryTransport`` and on a real nats-server (the one that all
tests share). Real: the transports, their consumers and streams. Fake: the clock of the in-memory
server, which is moved where a real server is waited for. So a unit test on memory means something.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from seams import BOUND_S, HISTORY, TASKS, BreakableSeam, Reader, Seam, events, publish, reading
from support import eventually, unique

from dagnats_worker._protocol import ACK, IN_PROGRESS, NAK, nak_frame, term_frame
from dagnats_worker._slots import Gate, Slots, WorkerSlots
from dagnats_worker._transport import ConsumerSpec, Delivery, StoredEvent, Transport
from dagnats_worker.errors import KeyValueError, PublishError, StartError, TransportError

SHORT = timedelta(milliseconds=300)
LEASE = timedelta(seconds=1)


@pytest.fixture
async def transport(seam: Seam) -> Transport:
    return await seam.connect()


def spec(task_type: str, ack_wait: timedelta | None = None) -> ConsumerSpec:
    return ConsumerSpec(TASKS, f"workers-{task_type}", f"task.{task_type}.>", ack_wait)


async def queued(transport: Transport, subject: str) -> bool:
    return subject in await transport.newest(TASKS, [subject])


# ---------------------------------------------------------------------- publishing


async def test_what_is_published_is_stored_in_order(transport: Transport) -> None:
    run_id = unique()
    first, _ = await publish(transport, f"history.{run_id}", b'{"n":1}')
    second, _ = await publish(transport, f"history.{run_id}", b'{"n":2}')
    assert second > first
    assert await events(transport, run_id) == [{"n": 1}, {"n": 2}]


async def test_a_message_id_is_stored_once(transport: Transport) -> None:
    run_id = unique()
    first = await publish(transport, f"history.{run_id}", Nats_Msg_Id=f"{run_id}.a")
    again = await publish(transport, f"history.{run_id}", Nats_Msg_Id=f"{run_id}.a")
    other = await publish(transport, f"history.{run_id}", Nats_Msg_Id=f"{run_id}.b")
    assert (first[1], again[1], other[1]) == (False, True, False)
    assert again[0] == first[0]
    assert len(await events(transport, run_id)) == 2


async def test_a_message_without_an_id_is_never_a_duplicate(transport: Transport) -> None:
    run_id = unique()
    stored = [await publish(transport, f"history.{run_id}") for _ in range(2)]
    assert [duplicate for _, duplicate in stored] == [False, False]


async def test_an_expected_sequence_that_holds_is_stored(transport: Transport) -> None:
    subject = f"history.{unique()}"
    first, _ = await publish(transport, subject, Nats_Expected_Last_Subject_Sequence="0")
    _, duplicate = await publish(transport, subject, Nats_Expected_Last_Subject_Sequence=str(first))
    assert not duplicate


@pytest.mark.parametrize("expected", ["0", "999999999"])
async def test_an_expected_sequence_that_does_not_hold_is_refused(
    transport: Transport, expected: str
) -> None:
    run_id = unique()
    await publish(transport, f"history.{run_id}")
    with pytest.raises(PublishError, match="wrong last sequence") as raised:
        await publish(transport, f"history.{run_id}", Nats_Expected_Last_Subject_Sequence=expected)
    assert raised.value.code == 10071
    assert len(await events(transport, run_id)) == 1


async def test_a_subject_without_a_stream_is_refused_with_a_remedy(transport: Transport) -> None:
    with pytest.raises(PublishError, match=r"no stream takes this subject.*setup") as raised:
        await publish(transport, f"nowhere.{unique()}")
    assert raised.value.code == 0


async def test_a_message_that_is_too_large_is_refused(transport: Transport) -> None:
    run_id = unique()
    future = await transport.publish(f"history.{run_id}", b"x" * (transport.max_payload + 1), {})
    with pytest.raises(PublishError, match=r"(?i)maximum payload"):
        await future
    assert await events(transport, run_id) == []


async def test_a_message_just_below_the_limit_is_stored(transport: Transport) -> None:
    run_id = unique()
    body = json.dumps("x" * (transport.max_payload - 200)).encode()
    await publish(transport, f"history.{run_id}", body, Nats_Msg_Id=run_id)
    assert len(await transport.history(run_id, limit=1)) == 1


# ---------------------------------------------------------------------- reading streams


async def test_history_is_read_after_a_sequence(transport: Transport) -> None:
    run_id = unique()
    sequences = [
        (await publish(transport, f"history.{run_id}", Nats_Msg_Id=f"{run_id}.{n}"))[0]
        for n in range(4)
    ]
    found = await transport.history(run_id, after_sequence=sequences[1], limit=100)
    assert [event.sequence for event in found] == sequences[2:]
    assert [event.message_id for event in found] == [f"{run_id}.2", f"{run_id}.3"]


async def test_history_is_read_up_to_a_limit(transport: Transport) -> None:
    run_id = unique()
    for n in range(4):
        await publish(transport, f"history.{run_id}", json.dumps(n).encode())
    found = await transport.history(run_id, limit=3)
    assert [event.data for event in found] == [b"0", b"1", b"2"]


async def test_history_is_read_since_the_time_of_a_task(transport: Transport) -> None:
    run_id, task_type = unique(), unique()
    await publish(transport, f"history.{run_id}", b'"before"')
    await publish(transport, f"task.{task_type}.{run_id}")
    await publish(transport, f"history.{run_id}", b'"after"')
    async with reading(transport, spec(task_type)) as reader:
        delivery = await reader.next()
        found = await transport.history(run_id, since_ns=delivery.timestamp_ns, limit=100)
        assert [event.data for event in found] == [b'"after"']
        await transport.send(delivery.ack_subject, ACK)
        reader.release(delivery)


async def test_history_of_an_unknown_run_is_empty(transport: Transport) -> None:
    found: list[StoredEvent] = await transport.history(unique(), limit=10)
    assert found == []


async def test_newest_finds_the_last_message_of_many_subjects(transport: Transport) -> None:
    runs = [unique() for _ in range(3)]
    for run_id in runs[:2]:
        await publish(transport, f"history.{run_id}", b'"old"')
        await publish(transport, f"history.{run_id}", f'"{run_id}"'.encode())
    found = await transport.newest(HISTORY, [f"history.{run_id}" for run_id in runs])
    assert found == {f"history.{run_id}": f'"{run_id}"'.encode() for run_id in runs[:2]}


async def test_newest_of_a_stream_that_is_not_there_finds_nothing(transport: Transport) -> None:
    assert await transport.newest("NO_SUCH_STREAM", ["a.b"]) == {}


async def test_a_stream_is_there_or_not(transport: Transport) -> None:
    assert await transport.has_stream(TASKS)
    assert await transport.has_stream("KV_workflow_runs")
    assert not await transport.has_stream("NO_SUCH_STREAM")


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
        assert await queued(transport, subject)
        await settle_all(transport, reader, [delivery])
        await eventually(lambda: not_queued(transport, subject))


async def test_an_ack_can_be_confirmed(transport: Transport) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r")
        delivery = await reader.next()
        assert await transport.request(delivery.ack_subject, ACK) == b""
        assert not await queued(transport, f"task.{task_type}.r")
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


async def test_a_task_that_is_given_back_for_a_while_comes_then(
    seam: Seam, transport: Transport
) -> None:
    task_type = unique()
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, f"task.{task_type}.r")
        first = await reader.next()
        await transport.send(first.ack_subject, nak_frame(2 * SHORT))
        reader.release(first)
        # One that was given back for a while holds up nobody, and does not come before its time.
        await publish(transport, f"task.{task_type}.other")
        other = await reader.next()
        assert other.subject == f"task.{task_type}.other"
        await settle_all(transport, reader, [other])
        assert await seam.unacked(TASKS, reader.source.name) == 1
        await seam.let_pass(2 * SHORT)
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
        await eventually(lambda: not_queued(transport, subject))
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
        await eventually(lambda: not_queued(transport, subject))
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
        assert await seam.unacked(TASKS, f"workers-{task_type}") == 1
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
        assert await seam.unacked(TASKS, f"workers-{task_type}") == 2
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
        await eventually(lambda: not_queued(transport, f"task.{task_type}.r0"))
        await seam.delete_consumer(TASKS, reader.source.name)
        await publish(transport, f"task.{task_type}.r1")
        delivery = await reader.next()
        assert (delivery.subject, delivery.deliveries) == (f"task.{task_type}.r1", 1)
        await settle_all(transport, reader, [delivery])


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
    gone = timedelta(minutes=5)
    await transport.open_source(
        ConsumerSpec(TASKS, unique("orphan"), filter_subject, inactive_threshold=gone)
    )
    source = await transport.open_source(spec(task_type))
    assert source.name == f"workers-{task_type}"


async def test_a_missing_stream_is_named_with_a_remedy(transport: Transport) -> None:
    wanted = ConsumerSpec("NO_SUCH_STREAM", "workers-a", "task.a.>")
    with pytest.raises(StartError, match=r"stream NO_SUCH_STREAM not found.*setup"):
        await transport.open_source(wanted)


# ---------------------------------------------------------------------- buckets


async def test_a_key_is_written_and_read_with_its_headers(transport: Transport) -> None:
    bucket, key = transport.key_value("checkpoints"), unique()
    assert await bucket.get(key) is None
    revision = await bucket.put(key, b"one", headers={"Delivery": "1"})
    entry = await bucket.get(key)
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == (key, b"one", revision)
    assert entry.headers["Delivery"] == "1"
    assert not entry.deleted


async def test_a_write_that_expects_a_revision_is_refused_when_another_came(
    transport: Transport,
) -> None:
    bucket, key = transport.key_value("checkpoints"), unique()
    first = await bucket.put(key, b"one", expected_revision=0)
    second = await bucket.put(key, b"two", expected_revision=first)
    for stale in (0, first):
        with pytest.raises(KeyValueError, match=f"is not at revision {stale}") as raised:
            await bucket.put(key, b"three", expected_revision=stale)
        assert raised.value.conflict
    entry = await bucket.get(key)
    assert entry is not None
    assert (entry.value, entry.revision) == (b"two", second)


async def test_a_deleted_key_is_gone(transport: Transport) -> None:
    bucket, key = transport.key_value("checkpoints"), unique()
    first = await bucket.put(key, b"one")
    with pytest.raises(KeyValueError) as raised:
        await bucket.delete(key, expected_revision=first + 1000)
    assert raised.value.conflict
    await bucket.delete(key, expected_revision=first)
    assert await bucket.get(key) is None
    assert key not in await bucket.keys()


async def test_the_keys_of_a_bucket_are_those_with_a_value(transport: Transport) -> None:
    bucket = transport.key_value("checkpoints")
    kept, deleted = unique(), unique()
    await bucket.put(kept, b"1")
    await bucket.put(deleted, b"1")
    await bucket.delete(deleted)
    keys = await bucket.keys()
    assert kept in keys
    assert deleted not in keys


async def test_a_watch_begins_with_what_is_there_and_goes_on(transport: Transport) -> None:
    bucket, key = transport.key_value("signals"), unique()
    await bucket.put(f"{key}.a", b"there")
    watch = bucket.watch(f"{key}.*")
    async with asyncio.timeout(BOUND_S):
        seen = [await anext(watch)]
        await bucket.put(f"{key}.b", b"new")
        seen.append(await anext(watch))
        await bucket.put(unique(), b"not for us")
        await bucket.delete(f"{key}.a")
        seen.append(await anext(watch))
    assert [(entry.key, entry.value, entry.deleted) for entry in seen] == [
        (f"{key}.a", b"there", False),
        (f"{key}.b", b"new", False),
        (f"{key}.a", b"", True),
    ]
    await watch.aclose()  # type: ignore[attr-defined]  # an async generator in both


async def test_a_missing_bucket_is_named_with_a_remedy(transport: Transport) -> None:
    bucket = transport.key_value("no_such_bucket")
    remedy = r"bucket 'no_such_bucket' not found.*setup"
    with pytest.raises(KeyValueError, match=remedy):
        await bucket.get("a")
    with pytest.raises(KeyValueError, match=remedy):
        await bucket.put("a", b"1")
    with pytest.raises(KeyValueError, match=remedy):
        await bucket.keys()
    with pytest.raises(KeyValueError, match=remedy):
        await anext(bucket.watch("a"))


@pytest.mark.parametrize("key", ["", ".a", "a.", "a b", "a*"])
async def test_a_text_that_is_no_key_is_refused(transport: Transport, key: str) -> None:
    with pytest.raises(KeyValueError, match="is not a key"):
        await transport.key_value("checkpoints").put(key, b"1")


# ---------------------------------------------------------------------- plain subjects


async def test_a_subscriber_hears_what_is_sent_and_what_is_stored(transport: Transport) -> None:
    run_id = unique()
    heard: asyncio.Queue[tuple[str, bytes, str]] = asyncio.Queue()
    end_stream = await transport.subscribe(
        f"stream.{run_id}.>", lambda subject, data, headers: heard.put_nowait((subject, data, ""))
    )
    end_history = await transport.subscribe(
        f"history.{run_id}",
        lambda subject, data, headers: heard.put_nowait((subject, data, headers["Nats-Msg-Id"])),
    )
    await transport.flush()
    await transport.send(f"stream.{run_id}.step", b"chunk", {"traceparent": "00-1"})
    async with asyncio.timeout(BOUND_S):
        assert await heard.get() == (f"stream.{run_id}.step", b"chunk", "")
        await publish(transport, f"history.{run_id}", b"{}", Nats_Msg_Id=f"{run_id}.a")
        assert await heard.get() == (f"history.{run_id}", b"{}", f"{run_id}.a")
    await end_stream()
    await end_history()


async def test_who_has_unsubscribed_hears_nothing(transport: Transport) -> None:
    run_id = unique()
    heard: list[bytes] = []
    still: asyncio.Queue[bytes] = asyncio.Queue()
    end = await transport.subscribe(f"stream.{run_id}", lambda _s, data, _h: heard.append(data))
    await transport.subscribe(f"stream.{run_id}", lambda _s, data, _h: still.put_nowait(data))
    await end()
    await transport.send(f"stream.{run_id}", b"1")
    async with asyncio.timeout(BOUND_S):
        assert await still.get() == b"1"
    assert heard == []


async def test_a_question_that_nobody_answers_is_an_error(transport: Transport) -> None:
    with pytest.raises(TransportError, match="nobody answers there"):
        await transport.request(f"api.{unique()}", b"{}")


# ---------------------------------------------------------------------- the connection


async def test_an_open_connection_says_so(transport: Transport) -> None:
    assert transport.connected
    assert not transport.closed.done()
    assert transport.max_payload == 1024 * 1024
    await transport.flush()


async def test_a_closed_connection_stores_nothing(transport: Transport) -> None:
    closed = transport.closed
    await transport.close()
    assert not transport.connected
    assert closed.done()
    with pytest.raises(PublishError):
        await publish(transport, f"history.{unique()}")


async def test_nothing_is_stored_while_the_connection_is_cut(breakable: BreakableSeam) -> None:
    transport = await breakable.connect()
    run_id = unique()
    await cut(breakable, transport)
    assert not transport.closed.done()
    with pytest.raises(PublishError):
        await publish(transport, f"history.{run_id}")
    with pytest.raises(TransportError):
        await transport.has_stream(TASKS)
    with pytest.raises(KeyValueError):
        await transport.key_value("checkpoints").get(run_id)


async def test_an_ack_of_a_cut_connection_is_sent_when_it_is_back(
    breakable: BreakableSeam,
) -> None:
    transport = await breakable.connect()
    task_type = unique()
    subject = f"task.{task_type}.r"
    async with reading(transport, spec(task_type)) as reader:
        await publish(transport, subject)
        delivery = await reader.next()
        await cut(breakable, transport)
        await settle_all(transport, reader, [delivery])
        await mend(breakable, transport)
        await eventually(lambda: not_queued(transport, subject))


async def test_a_cut_connection_goes_on_where_it_was(breakable: BreakableSeam) -> None:
    transport = await breakable.connect()
    task_type = unique()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await transport.subscribe(f"stream.{task_type}", lambda _s, data, _h: heard.put_nowait(data))
    async with reading(transport, spec(task_type), concurrency=2) as reader:
        await publish(transport, f"task.{task_type}.r0")
        await settle_all(transport, reader, [await reader.next()])
        await cut(breakable, transport)
        await mend(breakable, transport)
        await publish(transport, f"task.{task_type}.r1")
        delivery = await reader.next()
        assert delivery.subject == f"task.{task_type}.r1"
        await settle_all(transport, reader, [delivery])
        await transport.send(f"stream.{task_type}", b"chunk")
        async with asyncio.timeout(BOUND_S):
            assert await heard.get() == b"chunk"


async def cut(seam: BreakableSeam, transport: Transport) -> None:
    seam.cut()
    await eventually(lambda: not transport.connected)


async def mend(seam: BreakableSeam, transport: Transport) -> None:
    seam.mend()
    await eventually(lambda: transport.connected)


async def settle_all(transport: Transport, reader: Reader, deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        await transport.send(delivery.ack_subject, ACK)
        reader.release(delivery)


async def not_queued(transport: Transport, subject: str) -> bool:
    return not await queued(transport, subject)
