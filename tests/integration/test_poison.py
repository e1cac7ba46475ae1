"""Messages that can never be run, and tasks that kill whoever runs them, come to an end.

Method: a real server, what it says about terminated messages, and workers in processes that really
die. Fake: the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique
from worker_process import worker_process
from worker_support import (
    MANAGED,
    OtherWorker,
    dead_letters,
    event_types,
    history,
    queued,
    serving,
    settled,
    watching_acks,
)

from dagnats_worker import EmbeddedServer, TaskContext

WIRE = json.loads((Path(__file__).parents[1] / "vectors" / "wire.json").read_text("utf-8"))
VECTORS = {vector["name"]: vector["wire"].encode() for vector in WIRE}
BAD = [
    (VECTORS["decode.bad.not_json"], "unknown", "unknown"),
    (VECTORS["decode.bad.wrong_type"], "unknown", "s"),
    (VECTORS["decode.bad.float_attempt"], "r", "s"),
    (VECTORS["decode.bad.missing_run_id"], "unknown", "s"),
    (VECTORS["decode.bad.missing_step_id"], "r", "unknown"),
    (b"", "unknown", "unknown"),
    (b"null", "unknown", "unknown"),
    (b"[]", "unknown", "unknown"),
    (b"\x00\xff\xfe garbage \r\n", "unknown", "unknown"),
    (b'{"task_id":"\xff","run_id":"r","step_id":"s"}', "r", "s"),
    (b'{"task_id":"r.s","run_id":"r","step_id":"s","input":"\xff"}', "r", "s"),
    (b'{"task_id":"r.s","run_id":"r.other","step_id":"s"}', "r.other", "s"),
    (b'{"task_id":"r.s","run_id":"r","step_id":"s\\u000a"}', "r", "unknown"),
    (b'{"task_id":"r.s","run_id":"r","step_id":"s"} trailing', "r", "s"),
    (b'{"run_id":"r","step_id":"s","attempt":99999999999999999999}', "r", "s"),
    (b"[" * 10_000, "unknown", "unknown"),
]


async def never(ctx: TaskContext) -> None:
    """Fails the test that runs it."""
    raise AssertionError(f"{ctx.task_id} is not to be run")


# ------------------------------------------------------------------------- undecodable messages


def test_every_bad_message_of_the_vectors_is_tried() -> None:
    bad = {wire for name, wire in VECTORS.items() if name.startswith("decode.bad.")}
    assert bad <= {data for data, _, _ in BAD}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad[0][-40:]))
async def test_message_that_cannot_be_decoded_is_terminated_and_kept_byte_for_byte(
    shared_server: EmbeddedServer,
    nc: Client,
    js: JetStreamContext,
    caplog: pytest.LogCaptureFixture,
    bad: tuple[bytes, str, str],
) -> None:
    task_type = unique()
    data, run_id, step_id = bad
    advisories = await nc.subscribe(
        f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.TASK_QUEUES.workers-{task_type}"
    )
    await nc.flush()
    async with serving(shared_server.url, task_type, never) as worker:
        ack = await js.publish(f"task.{task_type}.r", data)
        await settled(js, task_type)
        advisory = json.loads((await advisories.next_msg(timeout=10)).data)
        assert worker.stats().rejected == 1
    (letter,) = await dead_letters(js, task_type)
    assert letter.data == data
    headers = dict(letter.headers)
    error = headers.pop("Dagnats-Dlq-Error")
    assert error.startswith("task message: ")
    assert headers == {
        "Nats-Msg-Id": f"dlq:TASK_QUEUES:{ack.seq}",
        "Dagnats-Dlq-Task": task_type,
        "Dagnats-Dlq-Run-Id": run_id,
        "Dagnats-Dlq-Step-Id": step_id,
        "Dagnats-Dlq-Attempts": "0",
        "Dagnats-Dlq-Delivery-Count": "1",
        "Dagnats-Dlq-Consumer": "TASK_QUEUES",
        "Dagnats-Dlq-Task-Subject": f"task.{task_type}.r",
    }
    assert advisory["reason"] == error
    assert any("cannot be decoded" in record.message for record in caplog.records)


async def test_message_that_cannot_be_decoded_stays_while_there_are_no_dead_letters(
    nats_server: EmbeddedServer,
) -> None:
    task_type = unique()
    async with connected(nats_server.url) as nc:
        js = nc.jetstream()
        async with (
            watching_acks(nc, task_type) as acks,
            serving(nats_server.url, task_type, never),
        ):
            stream = (await js.stream_info("DEAD_LETTERS")).config
            await js.delete_stream("DEAD_LETTERS")
            await js.publish(f"task.{task_type}.r", b"garbage")
            await eventually(lambda: len(acks.verdicts) >= 2)
            assert len(await queued(js, task_type)) == 1
            await js.add_stream(stream)
            await settled(js, task_type)
        assert set(acks.verdicts[:-1]) == {b'-NAK {"delay": 200000000}'}
        assert acks.verdicts[-1].startswith(b"+TERM task message: ")
        (letter,) = await dead_letters(js, task_type)
        assert letter.data == b"garbage"


async def test_bad_message_does_not_hold_up_the_good_one_behind_it(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    task_type, run_id = unique(), unique()

    async def handler(ctx: TaskContext) -> None:
        assert ctx.run_id == run_id

    await js.publish(f"task.{task_type}.r", b"garbage")
    await publish_task(js, task_type, run_id)
    async with serving(shared_server.url, task_type, handler, concurrency=1):
        await settled(js, task_type)
    assert await event_types(js, run_id) == ["step.started", "step.completed"]


# ------------------------------------------------------------------------- tasks that kill

CRASHES = """
worker = Worker(url, plugins=[], config=QUICK)

@worker.task(task_type, ack_wait=timedelta(seconds=0.3))
{kind} handler(ctx):
    note("started")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_task_that_kills_its_worker_five_times_fails_before_it_is_started_again(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path, kind: str
) -> None:
    task_type, run_id = unique(), unique()
    code = CRASHES.format(kind=kind)
    with worker_process(
        shared_server.url, task_type, tmp_path / "diary", code, respawn=True
    ) as worker:
        await publish_task(js, task_type, run_id, input={"a": 1})
        await settled(js, task_type)
        assert worker.noted("started") == 5
    events = await history(js, run_id)
    assert [event.type for event in events] == ["step.started"] * 5 + ["step.failed"]
    failure_type, text = events[-1].failure
    assert failure_type == "non_retriable"
    assert "crashed 5 times in a row" in text
    (letter,) = await dead_letters(js, task_type)
    assert letter.body["input"] == {"a": 1}
    assert letter.headers["Dagnats-Dlq-Attempts"] == "5"
    assert letter.headers["Dagnats-Dlq-Error"] == text


CRASH = "step.started"


@pytest.mark.parametrize("fields", [{}, MANAGED], ids=["no engine", "with an engine"])
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([CRASH] * 4, ["step.started", "step.completed"]),
        ([CRASH] * 5, ["step.failed"]),
        ([*[CRASH] * 4, "step.released drain", *[CRASH] * 4], ["step.started", "step.completed"]),
        ([*[CRASH] * 4, "step.released retry", *[CRASH] * 5], ["step.failed"]),
        (["step.unheard_of"] * 9, ["step.started", "step.completed"]),
    ],
)
async def test_only_crashes_in_a_row_use_up_the_budget(
    shared_server: EmbeddedServer,
    js: JetStreamContext,
    fields: dict[str, Any],
    events: list[str],
    expected: list[str],
) -> None:
    task_type, run_id = unique(), unique()
    other = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id, **fields)
    message = await other.take_and_publish(*events)

    async def handler(ctx: TaskContext) -> None:
        assert ctx.deliveries == 2

    async with serving(shared_server.url, task_type, handler):
        await message.nak()
        await settled(js, task_type)
    assert (await event_types(js, run_id))[len(events) :] == expected
    buried = expected == ["step.failed"] and not fields
    assert len(await dead_letters(js, task_type)) == buried


BURIES = """
class Dies(Plugin):
    name = "dies"

    @hookimpl
    @asynccontextmanager
    async def outcome_scope(self):
        yield
        if WHEN == "before the dead letter" and not times("died"):
            note("died")
            os._exit(1)

    @hookimpl
    def on_complete(self):
        if WHEN == "before the ack" and not times("died"):
            note("died")
            os._exit(1)

worker = Worker(url, plugins=[Dies()], config=QUICK)

@worker.task(task_type, ack_wait=timedelta(seconds=0.3))
async def handler(ctx: TaskContext) -> None:
    note("ran")
    if HOW == "fails":
        raise NonRetryableError("no")
    os._exit(1)
"""


@pytest.mark.parametrize("when", ["before the dead letter", "before the ack"])
@pytest.mark.parametrize("how", ["fails", "has crashed before"])
async def test_task_that_failed_for_good_is_buried_once_whenever_its_worker_dies(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path, how: str, when: str
) -> None:
    task_type, run_id = unique(), unique()
    other = await OtherWorker.bound(js, task_type)
    await publish_task(js, task_type, run_id)
    crashes = 5 if how == "has crashed before" else 0
    message = await other.take_and_publish(*[CRASH] * crashes)
    code = f"WHEN, HOW = {when!r}, {how!r}\n{BURIES}"
    with worker_process(
        shared_server.url, task_type, tmp_path / "diary", code, respawn=True
    ) as worker:
        await message.nak()
        await worker.wait_noted("died")
        await settled(js, task_type)
        assert worker.noted("ran") == (not crashes)
    (letter,) = await dead_letters(js, task_type)
    attempts = str(max(crashes, 1))
    assert letter.headers["Dagnats-Dlq-Attempts"] == attempts
    assert letter.message_id == f"dlq:{run_id}:step:{attempts}"
    assert (await event_types(js, run_id))[crashes:].count("step.failed") == 1
