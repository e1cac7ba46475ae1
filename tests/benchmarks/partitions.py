"""What it costs to split a task type into partitions, against the plain consumer, in one run.

    python tests/benchmarks/partitions.py --tasks 25000 --concurrency 256 --repeat 5

Loops:
    plain: The durable that all workers share.
    partitioned: 16 partitions in one process; the group's stream has no limit. The group is made
        at the start, so the server moves the whole backlog meanwhile.
    ordered: Likewise, and the tasks of one run go one by one.
    joining: The group is there, and the tasks are in its stream; the new member has to look whether
        somebody else has begun them.
    limited: The group's stream takes 1024 messages, as a worker in Go makes it; the server then
        lets in what is queued before it 500 to 900 times a second.

Needs the plugin. See ``drain.py`` for what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import loops
import nats
from drain import STREAM, TRIES_MAX, compare
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from dagnats_worker import TaskContext, Worker
from dagnats_worker_partitions import (
    PartitionFilter,
    PartitionsPlugin,
    PartitionsSettings,
    create_group,
    delete_group,
)

PARTITIONS = 16
GROUP = f"workers-{loops.TASK_TYPE}"
GOAL = 0.70
"""The part of the plain consumer's throughput that ``partitioned`` is to reach."""


async def plain(url: str, tasks: int, concurrency: int) -> float:
    """The durable that all workers share."""
    return await loops.worker(url, tasks, concurrency)


async def partitioned(
    url: str,
    tasks: int,
    concurrency: int,
    *,
    limit: int = 0,
    group_is_there: bool = False,
    **options: Any,
) -> float:
    """16 partitions, from the start of the worker to the last outcome."""
    client = await nats.connect(url)
    js = client.jetstream()
    with contextlib.suppress(NotFoundError):
        await js.delete_consumer(STREAM, loops.DURABLE)
    if group_is_there:
        filters = [PartitionFilter(loops.FILTER)]
        await create_group(client, STREAM, GROUP, PARTITIONS, filters, max_buffered_messages=limit)
        await _moved(js)
    plugin = PartitionsPlugin(PartitionsSettings(max_buffered_messages=limit))
    worker = Worker(url, max_tasks=concurrency, partitions=PARTITIONS, plugins=[plugin])

    @worker.task(loops.TASK_TYPE, **options)
    async def noop(ctx: TaskContext) -> None:
        pass

    await worker.start()
    began = time.perf_counter()
    while worker.stats().completed < tasks:  # noqa: ASYNC110 - the worker has no such event
        await asyncio.sleep(loops.LOOK_EVERY_S)
    took_s = time.perf_counter() - began
    await worker.stop()
    await _moved(js)
    await delete_group(client, STREAM, GROUP, force=True)
    await client.close()
    return took_s


async def _moved(js: JetStreamContext) -> None:
    """Wait until the server has moved all tasks into the stream of the group."""
    while (await js.stream_info(STREAM)).state.messages:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.1)


async def ordered(url: str, tasks: int, concurrency: int) -> float:
    """The tasks of one run go one by one; here each run has one."""
    return await partitioned(url, tasks, concurrency, ordered=True)


async def joining(url: str, tasks: int, concurrency: int) -> float:
    """The tasks were there before the member."""
    return await partitioned(url, tasks, concurrency, group_is_there=True)


async def limited(url: str, tasks: int, concurrency: int) -> float:
    """With Go's limit on the group's stream."""
    return await partitioned(url, tasks, concurrency, limit=1024)


LOOPS: dict[str, loops.Loop] = {
    "plain": plain,
    "partitioned": partitioned,
    "ordered": ordered,
    "joining": joining,
    "limited": limited,
}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in LOOPS:
        loops.main(LOOPS)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=25_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--loops", nargs="+", choices=LOOPS, default=["plain", "partitioned", "ordered", "joining"]
    )
    parser.add_argument(
        "--goal", action="store_true", help=f"fail when {GOAL:.2f} is missed {TRIES_MAX} times"
    )
    options = parser.parse_args()
    arguments = (options.loops, options.tasks, options.concurrency, options.repeat)
    for _ in range(TRIES_MAX if options.goal else 1):
        ratios = asyncio.run(compare(*arguments, script=Path(__file__)))
        if ratios.get("partitioned", 1.0) >= GOAL:
            return
    if options.goal:
        raise SystemExit(f"partitioned stays below {GOAL:.2f} times plain")


if __name__ == "__main__":
    main()
