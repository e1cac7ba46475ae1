"""The loops that are compared: what to beat, what a lean nats-py loop reaches, and the worker.

Each drains the same queue of no-op tasks, and for each task stores ``step.started`` and
``step.completed`` in the history before it acks. One process runs one loop once and prints how long
it took, so that none of them warms up or wears out another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from dagnats_worker import Plugin, TaskContext, Worker, WorkerConfig, hookimpl

TASK_TYPE = "noop"
DURABLE = "workers-noop"
FILTER = f"task.{TASK_TYPE}.>"
STREAM = "TASK_QUEUES"
LOOK_EVERY_S = 0.005


async def idiom(url: str, tasks: int, concurrency: int) -> float:
    """Fetch a batch, gather, publish, publish, ack: what a tutorial for nats-py shows."""
    client = await nats.connect(url)
    js = client.jetstream()
    subscription = await js.pull_subscribe(FILTER, durable=DURABLE, stream=STREAM)

    async def work(message: Msg) -> None:
        task = json.loads(message.data)
        for kind in ("step.started", "step.completed"):
            event = {"type": kind, "run_id": task["run_id"], "step_id": task["step_id"]}
            message_id = f"{task['task_id']}.{kind}.1"
            await js.publish(
                f"history.{task['run_id']}",
                json.dumps(event).encode(),
                headers={"Nats-Msg-Id": message_id},
            )
        await message.ack()

    done = 0
    began = time.perf_counter()
    while done < tasks:
        messages = await subscription.fetch(min(concurrency, tasks - done), timeout=5)
        await asyncio.gather(*(work(message) for message in messages))
        done += len(messages)
    await client.flush()
    took_s = time.perf_counter() - began
    await client.close()
    return took_s


class Lean:
    """Continuous pull, one reply inbox, a map of futures; public nats-py, and no safety at all."""

    def __init__(self, client: NatsClient, tasks: int, concurrency: int) -> None:
        self._client = client
        self._left = tasks
        self._concurrency = concurrency
        self._inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._count = 0
        self._arrived: deque[Msg] = deque()
        self._asked = 0
        self._running = 0
        self._encode = msgspec.json.Encoder().encode
        self._done = asyncio.get_running_loop().create_future()
        self._more = asyncio.Event()

    async def run(self) -> float:
        await self._client.subscribe(f"{self._inbox}.a.*", cb=self._on_ack, pending_msgs_limit=0)
        await self._client.subscribe(f"{self._inbox}.t.*", cb=self._on_task, pending_msgs_limit=0)
        began = time.perf_counter()
        puller = asyncio.create_task(self._pull())
        await self._done
        puller.cancel()
        await self._client.flush()
        return time.perf_counter() - began

    async def _pull(self) -> None:
        while True:
            free = self._concurrency - self._running - self._asked
            if free > 0:
                self._asked += free
                body = json.dumps({"batch": free, "expires": 30_000_000_000}).encode()
                await self._client.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}", body, f"{self._inbox}.t.1"
                )
            self._more.clear()
            await self._more.wait()

    async def _on_ack(self, message: Msg) -> None:
        future = self._waiting.pop(message.subject.rpartition(".")[2])
        if b'"error"' in message.data:
            future.set_exception(RuntimeError(message.data.decode()))
        else:
            future.set_result(None)

    async def _on_task(self, message: Msg) -> None:
        if message.reply:
            self._asked -= 1
            self._running += 1
            asyncio.create_task(self._work(message))  # noqa: RUF006 - the loop ends with the process

    async def _publish(self, run_id: str, kind: str, task: dict[str, Any]) -> asyncio.Future[None]:
        self._count += 1
        token = str(self._count)
        future = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        event = {"type": kind, "run_id": run_id, "step_id": task["step_id"]}
        await self._client.publish(
            f"history.{run_id}",
            self._encode(event),
            f"{self._inbox}.a.{token}",
            {"Nats-Msg-Id": f"{task['task_id']}.{kind}.1"},
        )
        return future

    async def _work(self, message: Msg) -> None:
        task = msgspec.json.decode(message.data)
        run_id = task["run_id"]
        started = await self._publish(run_id, "step.started", task)
        await started
        await (await self._publish(run_id, "step.completed", task))
        await self._client.publish(message.reply, b"+ACK")
        self._running -= 1
        self._left -= 1
        self._more.set()
        if not self._left:
            self._done.set_result(None)


async def lean(url: str, tasks: int, concurrency: int) -> float:
    """The best loop that public nats-py allows, without any of the worker's promises."""
    client = await nats.connect(url)
    took_s = await Lean(client, tasks, concurrency).run()
    await client.close()
    return took_s


async def worker(
    url: str,
    tasks: int,
    concurrency: int,
    plugins: tuple[Plugin[Any], ...] = (),
    config: WorkerConfig | None = None,
) -> float:
    """The worker as it is installed, with all its promises."""
    serving = Worker(url, max_tasks=concurrency, plugins=plugins, config=config)

    @serving.task(TASK_TYPE)
    async def noop(ctx: TaskContext) -> None:
        pass

    await serving.start()
    began = time.perf_counter()
    while serving.stats().completed < tasks:  # noqa: ASYNC110 - the worker has no such event
        await asyncio.sleep(LOOK_EVERY_S)
    took_s = time.perf_counter() - began
    await serving.stop()
    return took_s


async def unhurried(url: str, tasks: int, concurrency: int) -> float:
    """The worker when it need not ask whether queued runs were cancelled."""
    config = replace(WorkerConfig(), fresh_for=timedelta(hours=1))
    return await worker(url, tasks, concurrency, config=config)


class Idle(Plugin[None]):
    """Three hooks that do nothing."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]  # five plugins of one class differ by name only
        super().__init__()

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        pass

    @hookimpl
    async def pre_publish(self) -> None:
        pass

    @hookimpl
    async def on_complete(self, ctx: TaskContext) -> None:
        pass


async def hooked(url: str, tasks: int, concurrency: int) -> float:
    """The worker with five plugins of three empty async hooks each."""
    return await worker(url, tasks, concurrency, tuple(Idle(f"idle-{n}") for n in range(5)))


Loop = Callable[[str, int, int], Awaitable[float]]
LOOPS: dict[str, Loop] = {
    "idiom": idiom,
    "lean": lean,
    "worker": worker,
    "unhurried": unhurried,
    "hooked": hooked,
}


def main(loops: Mapping[str, Loop] = LOOPS) -> None:
    """Run the loop that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=loops)
    parser.add_argument("url")
    parser.add_argument("tasks", type=int)
    parser.add_argument("concurrency", type=int)
    options = parser.parse_args()
    began_s = time.process_time()
    took_s = asyncio.run(_timed(loops[options.loop], options))
    print(took_s, time.process_time() - began_s)


async def _timed(loop: Loop, options: argparse.Namespace) -> float:
    return await loop(options.url, options.tasks, options.concurrency)


if __name__ == "__main__":
    main()
