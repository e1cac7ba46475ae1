"""A member's life: it joins, follows its group, lets go without losing anything, and leaves.

Method: workers in this process on one real server; the group's record, the consumers and the
histories are read afterwards. Fake: members in Go, by what they do on the wire.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from partitions_support import (
    BOUND_S,
    CONFIG,
    SETTINGS,
    GoMember,
    covered,
    empty,
    history_of,
    in_order,
    info_of,
    member,
    publish,
)
from support import connected, eventually, stored_events, unique

from dagnats_worker import EmbeddedServer, TaskContext, Worker
from dagnats_worker.errors import PluginError
from dagnats_worker_partitions import (
    PartitionsPlugin,
    PartitionsSettings,
    add_members,
    delete_group,
    drop_members,
    group_info,
)
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._names import TASK_STREAM, group_name, group_stream


class Diary:
    """What the handlers of several members did."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, str]] = []
        self.running: set[tuple[str, str]] = set()
        self.repeated = 0
        self.overlapping = 0
        self.begun: set[tuple[str, str]] = set()

    def handler(self, name: str, takes_s: float) -> Any:
        async def handle(ctx: TaskContext) -> None:
            task = (ctx.run_id, ctx.step_id)
            self.repeated += task in self.begun
            self.overlapping += any(run_id == ctx.run_id for run_id, _ in self.running)
            self.begun.add(task)
            self.running.add(task)
            try:
                await asyncio.sleep(takes_s)
            finally:
                self.running.discard(task)
            self.done.append((name, *task))

        return handle


# ------------------------------------------------------------------------- joining and leaving


async def test_only_member_has_all_partitions_and_hands_out_tasks_as_they_were_published(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, run_id, seen = unique(), unique("r"), list[tuple[str, str]]()

    async def handler(ctx: TaskContext) -> str:
        seen.append((ctx.task_type, ctx.run_id))
        return "done"

    async with member(shared_server.url, kind, handler, "m1"):
        await covered(nc, kind, "m1")
        await publish(nc, kind, [run_id])
        await empty(nc, kind)
    assert seen == [(kind, run_id)]
    events = await stored_events(nc, run_id)
    assert [one["type"] for one in events] == ["step.started", "step.completed"]
    assert {one["worker_id"] for one in events} == {"m1"}


async def test_clean_stop_hands_over_in_under_a_second(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    async with member(shared_server.url, kind, diary.handler("m2", 0), "m2"):
        async with member(shared_server.url, kind, diary.handler("m1", 0), "m1"):
            await covered(nc, kind, "m1", "m2")
            began = time.monotonic()
        await covered(nc, kind, "m2")
        took_s = time.monotonic() - began
    assert took_s < 1.0, "the goal of this plugin, several times what it takes"
    assert (await info_of(nc, kind)).record.config.members == ()


async def test_member_beyond_the_number_of_partitions_waits_and_takes_over(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    arguments: dict[str, Any] = {"partitions": 1}
    url = shared_server.url
    async with member(url, kind, diary.handler("m2", 0), "m2", **arguments):
        async with member(url, kind, diary.handler("m1", 0), "m1", **arguments):
            await covered(nc, kind, "m1")
            await publish(nc, kind, [unique("r")])
            await empty(nc, kind)
        await covered(nc, kind, "m2")
        await publish(nc, kind, [unique("r")])
        await empty(nc, kind)
    assert [name for name, *_ in diary.done] == ["m1", "m2"]


async def test_member_that_somebody_took_out_comes_back(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1"):
        await covered(nc, kind, "m1")
        before = (await info_of(nc, kind)).record.revision
        await drop_members(nc, TASK_STREAM, group_name(kind), ["m1"])

        async def back() -> bool:
            record = (await info_of(nc, kind)).record
            return record.revision > before + 1 and record.config.members == ("m1",)

        await eventually(back, BOUND_S)
        await covered(nc, kind, "m1")
        await publish(nc, kind, [unique("r")])
        await empty(nc, kind)


async def test_deleted_group_stops_its_workers_and_says_so(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1") as worker:
        await covered(nc, kind, "m1")
        await delete_group(nc, TASK_STREAM, group_name(kind))
        async with asyncio.timeout(BOUND_S):
            reason = await worker.wait_stopped()
    assert group_name(kind) in reason
    assert "was deleted" in reason


# ------------------------------------------------------------------------- changes under load


@pytest.mark.parametrize(("takes_s", "runs", "slots"), [(0.005, 300, 16), (0.4, 24, 4)])
async def test_members_come_and_go_and_nothing_is_repeated(
    shared_server: EmbeddedServer, nc: NatsClient, takes_s: float, runs: int, slots: int
) -> None:
    kind, diary, steps = unique(), Diary(), 2
    url = shared_server.url
    names = [unique("r") for _ in range(runs)]

    def another(name: str) -> Any:
        handler = diary.handler(name, takes_s)
        return member(url, kind, handler, name, partitions=8, max_tasks=slots, ordered=True)

    async with another("m3"):
        await covered(nc, kind, "m3")
        flowing = asyncio.create_task(publish(nc, kind, names, steps))
        async with another("m1"):
            await eventually(lambda: any(one[0] == "m1" for one in diary.done), BOUND_S)
            async with another("m2"):
                await eventually(lambda: any(one[0] == "m2" for one in diary.done), BOUND_S)
            await flowing
        await empty(nc, kind)
    assert len(diary.done) == runs * steps
    assert (diary.repeated, diary.overlapping) == (0, 0)
    history = await history_of(nc, names)
    assert all(in_order(history[run_id], steps) for run_id in names)


async def pulls_no_more(nc: NatsClient, kind: str, name: str) -> bool:
    """Whether a member has begun to let go: its consumer is there, and nobody asks it."""
    info = await JetStreamApi(nc).consumer(group_stream(TASK_STREAM, group_name(kind)), name)
    return info is not None and not info.get("num_waiting")


async def test_partition_is_kept_until_its_handler_has_ended(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, entered, release = unique(), asyncio.Event(), asyncio.Event()
    others = list[str]()

    async def slow(ctx: TaskContext) -> None:
        entered.set()
        await release.wait()

    async def quick(ctx: TaskContext) -> None:
        others.append(ctx.step_id)

    run_id = unique("r")
    async with member(shared_server.url, kind, slow, "m2", partitions=1):
        await publish(nc, kind, [run_id])
        async with asyncio.timeout(BOUND_S):
            await entered.wait()
        async with member(shared_server.url, kind, quick, "m1", partitions=1):
            # The first name now is m1, which owns the only partition as soon as it can have it.
            await eventually(lambda: pulls_no_more(nc, kind, "m2"))
            await publish(nc, kind, [run_id], steps=2)
            long = SETTINGS.ack_wait.total_seconds() * 3
            with pytest.raises(AssertionError):
                await eventually(lambda: others, long)
            release.set()
            await empty(nc, kind)
    assert others == ["s1"]
    started = [one for one in await stored_events(nc, run_id) if one["type"] == "step.started"]
    assert [one["worker_id"] for one in started] == ["m2", "m1"]


# ------------------------------------------------------------------------- beside members in Go


async def test_member_in_go_that_lets_go_under_its_handler_repeats_only_that_task(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    go = GoMember(nc, kind, "a-go")
    runs = [unique("r") for _ in range(12)]
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1"):
        await covered(nc, kind, "m1")
        await go.list_itself()
        await eventually(go.join, BOUND_S)
        await covered(nc, kind, "a-go", "m1")
        await publish(nc, kind, runs)
        await eventually(lambda: go.handled, BOUND_S)
        await drop_members(nc, TASK_STREAM, group_name(kind), ["a-go"])
        await go.drop_consumer()
        await empty(nc, kind)
    assert {run_id for _, run_id, _ in diary.done} == set(runs)
    assert len(diary.done) == len(runs)


async def test_member_waits_while_one_in_go_still_has_its_partitions(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    go = GoMember(nc, kind, "a-go")
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1", partitions=2):
        await go.list_itself()
        await eventually(go.join, BOUND_S)
        await covered(nc, kind, "a-go", "m1")
        await drop_members(nc, TASK_STREAM, group_name(kind), ["a-go"])
        runs = [unique("r") for _ in range(6)]
        await publish(nc, kind, runs)

        async def released() -> bool:
            (other,) = await JetStreamApi(nc).consumers(group_stream(TASK_STREAM, group_name(kind)))
            return bool(other["name"] == "a-go")

        await eventually(released, BOUND_S)  # ours is gone, and the server says 10100 to the next
        await go.drop_consumer()
        await covered(nc, kind, "m1")
        await empty(nc, kind)
    assert {run_id for _, run_id, _ in diary.done} == set(runs)


# ------------------------------------------------------------------------- what is refused


def partitioned(url: str, kind: str, **more: Any) -> Worker:
    options = {"partitions": 2, "plugins": [PartitionsPlugin(SETTINGS)], "config": CONFIG, **more}
    worker = Worker(url, **options)
    worker.handle(kind, lambda text: None)
    return worker


async def refused(worker: Worker) -> str:
    with pytest.raises(PluginError) as caught:
        await worker.start()
    return str(caught.value)


async def test_dotted_task_type_is_refused_and_told_why(shared_server: EmbeddedServer) -> None:
    text = await refused(partitioned(shared_server.url, "mail.send"))
    assert "'mail.send' cannot be partitioned" in text
    assert "a dot would end it" in text


async def test_worker_id_that_cannot_be_a_consumer_is_refused(
    shared_server: EmbeddedServer,
) -> None:
    assert "'a/b'" in await refused(partitioned(shared_server.url, unique(), worker_id="a/b"))


async def test_plain_consumer_on_the_same_tasks_is_refused_with_both_names(
    shared_server: EmbeddedServer,
) -> None:
    kind = unique()
    plain = Worker(shared_server.url, plugins=[], config=CONFIG)
    plain.handle(kind, lambda text: None)
    async with plain:
        text = await refused(partitioned(shared_server.url, kind))
    assert f"'workers-{kind}'" in text
    assert f"consumer 'workers-{kind}'" in text


async def test_plain_worker_is_refused_where_there_is_a_group(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1"):
        plain = Worker(shared_server.url, plugins=[], config=CONFIG)
        plain.handle(kind, lambda text: None)
        with pytest.raises(Exception, match=group_stream(TASK_STREAM, group_name(kind))):
            await plain.start()


async def test_group_of_another_size_is_refused(shared_server: EmbeddedServer) -> None:
    kind, diary = unique(), Diary()
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1", partitions=4):
        text = await refused(partitioned(shared_server.url, kind))
    assert "partitions 4, wanted 2" in text


async def test_order_without_partitions_is_refused(shared_server: EmbeddedServer) -> None:
    worker = Worker(shared_server.url, plugins=[PartitionsPlugin(SETTINGS)], config=CONFIG)
    worker.handle(unique(), lambda text: None, ordered=True)
    assert "add partitions=" in await refused(worker)


async def test_one_task_type_is_split_and_another_is_not(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    split, plain, seen = unique(), unique(), list[str]()

    async def handler(ctx: TaskContext) -> None:
        seen.append(ctx.task_type)

    worker = Worker(shared_server.url, plugins=[PartitionsPlugin(SETTINGS)], config=CONFIG)
    worker.handle(split, handler, partitions=2)
    worker.handle(plain, handler)
    async with worker:
        for kind in (split, plain):
            await publish(nc, kind, [unique("r")])
        await eventually(lambda: len(seen) == 2, BOUND_S)
    assert set(seen) == {split, plain}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lease": timedelta(seconds=1)}, "lease is at least"),
        ({"ack_wait": timedelta(0)}, "ack_wait is at least"),
        ({"max_buffered_messages": -1}, "max_buffered_messages"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PartitionsSettings(**settings)


# ------------------------------------------------------------------------- the limit


async def test_full_group_keeps_the_rest_in_the_queue_and_loses_nothing(
    nats_server: EmbeddedServer,
) -> None:
    kind, release, done = unique(), asyncio.Event(), list[str]()

    async def handler(ctx: TaskContext) -> None:
        await release.wait()
        done.append(ctx.run_id)

    settings = PartitionsSettings(max_buffered_messages=20)
    runs = [unique("r") for _ in range(60)]
    async with (
        connected(nats_server.url) as nc,
        member(nats_server.url, kind, handler, "m1", max_tasks=4, settings=settings),
    ):
        await publish(nc, kind, runs)

        async def full() -> bool:
            return (await info_of(nc, kind)).messages == 20

        await eventually(full, BOUND_S)
        queue = await nc.jetstream().stream_info(TASK_STREAM)
        assert queue.state.messages >= 40
        release.set()
        await empty(nc, kind)
    assert sorted(done) == sorted(runs)


async def test_members_are_added_by_somebody_else_while_ours_runs(
    shared_server: EmbeddedServer, nc: NatsClient
) -> None:
    kind, diary = unique(), Diary()
    async with member(shared_server.url, kind, diary.handler("m1", 0), "m1", partitions=2):
        await add_members(nc, TASK_STREAM, group_name(kind), ["m9"])

        async def halved() -> bool:
            info = await group_info(nc, TASK_STREAM, group_name(kind))
            return [(one.member, one.read) for one in info.partitions] == [
                ("m1", True),
                ("m9", False),
            ]

        await eventually(halved, BOUND_S)
