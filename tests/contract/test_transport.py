"""What the core may expect of a transport, whichever it is.

Method: every test runs twice, on ``MemoryTransport`` and on a real nats-server (the one that all
tests share). Real: the transports, their consumers and streams. Fake: the clock of the in-memory
server, which is moved where a real server is waited for. So a unit test on memory means something.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from seams import (
    BOUND_S,
    HISTORY,
    TASKS,
    BreakableSeam,
    Seam,
    events,
    gone,
    publish,
    reading,
    settle_all,
    spec,
)
from support import eventually, unique

from dagnats_worker._protocol import ACK
from dagnats_worker._transport import StoredEvent, Transport
from dagnats_worker.errors import KeyValueError, PublishError, TransportError


@pytest.fixture
async def transport(seam: Seam) -> Transport:
    return await seam.connect()


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
    with pytest.raises(
        PublishError, match=r"more than the server's max_payload, 1048576"
    ) as raised:
        await future
    assert raised.value.code == 10054
    assert await events(transport, run_id) == []
    with pytest.raises(PublishError, match="max_payload"):
        await transport.send(f"stream.{run_id}", b"x" * (transport.max_payload + 1))


async def test_headers_count_as_payload(transport: Transport) -> None:
    subject, body = f"history.{unique()}", b"x" * (transport.max_payload - 10)
    with pytest.raises(PublishError, match="max_payload"):
        await (await transport.publish(subject, body, {"Nats-Msg-Id": "a"}))
    assert transport.connected


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


async def test_a_cut_connection_can_be_closed(breakable: BreakableSeam) -> None:
    transport = await breakable.connect()
    await cut(breakable, transport)
    await transport.send(f"stream.{unique()}", b"never sent")
    await transport.close()
    assert transport.closed.done()


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
        await eventually(lambda: gone(transport, subject))


async def test_a_cut_connection_goes_on_where_it_was(breakable: BreakableSeam) -> None:
    transport = await breakable.connect()
    task_type = unique()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await transport.subscribe(f"stream.{task_type}", lambda _s, data, _h: heard.put_nowait(data))
    async with reading(transport, spec(task_type), concurrency=2) as reader:
        await publish(transport, f"task.{task_type}.r0")
        await settle_all(transport, reader, [await reader.next()])
        await eventually(lambda: not reader.slots.may_idle(), what="a pull is open")
        await cut(breakable, transport)
        await eventually(reader.slots.may_idle, what="the pull is given up")
        await mend(breakable, transport)
        await publish(transport, f"task.{task_type}.r1")
        delivery = await reader.next()
        assert delivery.subject == f"task.{task_type}.r1"
        await settle_all(transport, reader, [delivery])
        await transport.send(f"stream.{task_type}", b"chunk")
        async with asyncio.timeout(BOUND_S):
            assert await heard.get() == b"chunk"


async def test_what_was_queued_when_the_connection_was_cut_is_doubtful(
    breakable: BreakableSeam,
) -> None:
    transport = await breakable.connect()
    task_type = unique()
    async with reading(transport, spec(task_type), concurrency=1) as reader:
        for run_id in ("r0", "r1"):
            await publish(transport, f"task.{task_type}.{run_id}")
        held = await reader.next()
        await cut(breakable, transport)
        await mend(breakable, transport)
        await settle_all(transport, reader, [held])
        old = await reader.next()
        assert (held.doubtful, old.doubtful) == (False, True)
        await settle_all(transport, reader, [old])
        await publish(transport, f"task.{task_type}.r2")
        new = await reader.next()
        assert not new.doubtful
        await settle_all(transport, reader, [new])


async def cut(seam: BreakableSeam, transport: Transport) -> None:
    await seam.cut()
    await eventually(lambda: not transport.connected)


async def mend(seam: BreakableSeam, transport: Transport) -> None:
    seam.mend()
    await eventually(lambda: transport.connected)
