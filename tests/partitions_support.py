"""What the tests of partitions share: members in this process and in others, and what was done.

Everything is real: the server, the processes, their signals. ``GoMember`` stands in for a member
written in Go, and does on the wire what that one does where it differs from ours.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from support import eventually, publish_task
from worker_process import WorkerProcess, worker_process
from worker_support import QUICK

from dagnats_worker import Worker, WorkerConfig
from dagnats_worker_partitions import (
    GroupInfo,
    GroupNotFoundError,
    PartitionsPlugin,
    PartitionsSettings,
    add_members,
    group_info,
)
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._names import TASK_STREAM, group_name, group_stream
from dagnats_worker_partitions._priority import (
    consumer_config,
    create_consumer,
    pull_request,
    pull_subject,
    timings_of,
)
from dagnats_worker_partitions._rules import filters_of

BOUND_S = 40
LEASE = timedelta(seconds=3)
ACK_WAIT = timedelta(seconds=2)
SETTINGS = PartitionsSettings(ack_wait=ACK_WAIT, lease=LEASE)
CONFIG = replace(QUICK, drain_timeout=timedelta(seconds=20), reconnect_wait=timedelta(seconds=0.1))


@asynccontextmanager
async def member(
    url: str,
    kind: str,
    handler: Callable[..., Any],
    name: str,
    *,
    partitions: int = 4,
    max_tasks: int = 16,
    settings: PartitionsSettings = SETTINGS,
    config: WorkerConfig = CONFIG,
    **options: Any,
) -> AsyncIterator[Worker]:
    """A worker in this process that is a member."""
    worker = Worker(
        url,
        worker_id=name,
        partitions=partitions,
        max_tasks=max_tasks,
        plugins=[PartitionsPlugin(settings)],
        config=config,
    )
    worker.handle(kind, handler, **options)
    async with worker:
        yield worker


PROCESS = """
import logging
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
from partitions_support import CONFIG, SETTINGS, PartitionsPlugin
worker = Worker(url, worker_id={name!r}, partitions={partitions}, max_tasks={max_tasks},
                plugins=[PartitionsPlugin(SETTINGS)], config=CONFIG)
@worker.task(task_type, ordered={ordered})
async def handler(ctx):
    note(f"{{time.time()}} begin {{ctx.run_id}} {{ctx.step_id}} {name}")
    try:
        await asyncio.sleep({handler_s})
    except asyncio.CancelledError:
        note(f"{{time.time()}} cancelled {{ctx.run_id}} {{ctx.step_id}} {name}")
        raise
    note(f"{{time.time()}} end {{ctx.run_id}} {{ctx.step_id}} {name}")
"""


@contextmanager
def process(
    url: str,
    kind: str,
    diary: Path,
    name: str,
    *,
    partitions: int = 4,
    max_tasks: int = 16,
    handler_s: float = 0.005,
    ordered: bool = True,
) -> Iterator[WorkerProcess]:
    """A member in a process of its own; its handlers write into the diary."""
    code = PROCESS.format(
        name=name,
        partitions=partitions,
        max_tasks=max_tasks,
        handler_s=handler_s,
        ordered=ordered,
    )
    with worker_process(url, kind, diary, code) as running:
        yield running


@dataclass(frozen=True)
class Entry:
    """A line of a diary."""

    at_s: float
    what: str
    run_id: str
    step_id: str
    member: str


def entries(diary: Path) -> list[Entry]:
    """A diary, in the order in which it was written."""
    found = []
    for line in diary.read_text().splitlines() if diary.exists() else ():
        at, what, run_id, step_id, name = line.split()
        found.append(Entry(float(at), what, run_id, step_id, name))
    return found


def noted(diary: Path, what: str, **wanted: str) -> list[Entry]:
    """The lines of one kind, where all of this holds."""
    return [
        one
        for one in entries(diary)
        if one.what == what and all(getattr(one, key) == value for key, value in wanted.items())
    ]


async def publish(nc: NatsClient, kind: str, runs: Sequence[str], steps: int = 1) -> None:
    """Queue so many steps of each run, the first ones first."""
    js = nc.jetstream()
    for number in range(steps):
        for run_id in runs:
            await publish_task(js, kind, run_id, f"s{number}")


async def info_of(nc: NatsClient, kind: str) -> GroupInfo:
    """The group of a task type."""
    return await group_info(nc, TASK_STREAM, group_name(kind))


async def covered(nc: NatsClient, kind: str, *names: str) -> None:
    """Wait until these members, and no others, read all partitions."""

    async def ready() -> bool:
        info = await info_of(nc, kind)
        owners = {one.member for one in info.partitions}
        return owners == set(names) and all(one.read for one in info.partitions)

    await eventually(ready, BOUND_S, what=f"{names} read all partitions of {kind}")


async def served(nc: NatsClient, kind: str, *names: str) -> None:
    """Wait until these members, which are starting, read all partitions."""

    async def there() -> bool:
        try:
            return bool(await info_of(nc, kind))
        except GroupNotFoundError:
            return False

    await eventually(there, BOUND_S, what="the group is made")
    await covered(nc, kind, *names)


async def empty(nc: NatsClient, kind: str, within_s: float = BOUND_S) -> None:
    """Wait until nothing of a task type is queued anywhere."""
    js = nc.jetstream()

    async def nothing() -> bool:
        left = await js.stream_info(TASK_STREAM, subjects_filter=f"task.{kind}.>")
        info = await info_of(nc, kind)
        return not left.state.subjects and info.messages == 0

    await eventually(nothing, within_s, what=f"no task of {kind} left")


async def history_of(nc: NatsClient, runs: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The events of each run, in stored order, read in one go."""
    wanted = set(runs)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    js = nc.jetstream()
    last = (await js.stream_info("WORKFLOW_HISTORY")).state.last_seq
    subscription = await js.subscribe("history.>", ordered_consumer=True)
    while last:
        message = await subscription.next_msg(timeout=10)
        run_id = message.subject.partition(".")[2]
        if run_id in wanted:
            event = json.loads(message.data)
            event["at_s"] = message.metadata.timestamp.timestamp()
            found[run_id].append(event)
        if message.metadata.sequence.stream >= last:
            break
    await subscription.unsubscribe()
    return found


def in_order(events: Sequence[dict[str, Any]], steps: int) -> bool:
    """Whether every step was started only after all steps before it had been completed."""
    done: set[str] = set()
    for event in events:
        if event["type"] == "step.completed":
            done.add(event["step_id"])
        elif event["type"] == "step.started":
            number = int(event["step_id"][1:])
            if any(f"s{earlier}" not in done for earlier in range(number)):
                return False
    return done == {f"s{number}" for number in range(steps)}


def overlaps(diary: Path) -> int:
    """How often a step was begun while it ran already, or two steps of a run at the same time."""
    running: dict[str, tuple[str, str]] = {}
    found = 0
    for one in entries(diary):
        if one.what == "begin":
            found += one.run_id in running
            running[one.run_id] = (one.step_id, one.member)
        elif running.get(one.run_id) == (one.step_id, one.member):
            del running[one.run_id]
    return found


class GoMember:
    """Does what a member in Go does: joins, never leaves, and lets go under a running handler."""

    def __init__(self, nc: NatsClient, kind: str, name: str) -> None:
        self.name = name
        self.handled: list[str] = []
        self.hold = asyncio.Event()
        self._nc = nc
        self._group = group_name(kind)
        self._stream = group_stream(TASK_STREAM, self._group)
        self._api = JetStreamApi(nc)
        self._pin = ""
        self._subscription: Any = None

    async def list_itself(self) -> None:
        """Its name goes into the record, and stays there whatever becomes of it."""
        await add_members(self._nc, TASK_STREAM, self._group, [self.name])

    async def join(self) -> bool:
        """Make a consumer and pull; false where somebody else has one of the partitions."""
        info = await group_info(self._nc, TASK_STREAM, self._group)
        filters = filters_of(info.record.config, self.name)
        timings = timings_of(timedelta(seconds=5))
        config = consumer_config(self.name, filters, timings, 1)
        if (await create_consumer(self._api, self._stream, config)).name != "JOINED":
            return False
        inbox = self._nc.new_inbox()
        self._subscription = await self._nc.subscribe(inbox, cb=self._on_message)
        subject = pull_subject(self._stream, self.name)
        await self._nc.publish(subject, pull_request(timings, ""), reply=inbox)
        return True

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK"):
            self.handled.append(message.subject.rpartition(".")[2])
            await self.hold.wait()
            await self._nc.publish(message.reply, b"+ACK")

    async def drop_consumer(self) -> None:
        """On a change it deletes its consumer, whatever its handler does."""
        await self._api.delete_consumer(self._stream, self.name)
