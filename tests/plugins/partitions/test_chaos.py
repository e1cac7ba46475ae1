"""A fleet under fire: nothing is lost, and the tasks of a run keep their order.

Method: three processes serve sixteen partitions while tasks flow. They are killed and started
again, under their own name and under new ones; one joins and one leaves; the server is started
again. Then the history of every run is read. Everything is real.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import defaultdict
from pathlib import Path

import nats.errors
from nats.js import JetStreamContext
from partitions_support import (
    BOUND_S,
    LEASE,
    covered,
    empty,
    entries,
    history_of,
    in_order,
    process,
    served,
)
from support import connected, publish_task, unique
from worker_process import WorkerProcess

from dagnats_worker import EmbeddedServer
from dagnats_worker_partitions._rules import partition_of

PARTITIONS = 16
RUNS = 2000
STEPS = 3
WAVE = 20
PAUSE_S = 0.3
IDLE_MAX_S = LEASE.total_seconds() + 5 + 12 + 10
"""A killed member's lease and five seconds, a server's return, and a slow machine."""


class Fleet:
    """The processes, by the names of their members."""

    def __init__(self, url: str, kind: str, diary: Path) -> None:
        self._arguments = (url, kind, diary)
        self._stacks: dict[str, contextlib.ExitStack] = {}
        self.running: dict[str, WorkerProcess] = {}

    def start(self, name: str) -> None:
        stack = contextlib.ExitStack()
        worker = process(*self._arguments, name, partitions=PARTITIONS)
        self.running[name] = stack.enter_context(worker)
        self._stacks[name] = stack

    async def kill(self, name: str) -> None:
        await asyncio.to_thread(self._stacks.pop(name).close)
        del self.running[name]

    async def leave(self, name: str) -> None:
        worker = self.running.pop(name)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        self._stacks.pop(name).close()

    async def close(self) -> None:
        for name in list(self._stacks):
            await self.kill(name)


async def break_things(fleet: Fleet, server: EmbeddedServer, seed: int) -> None:
    """What happens to the fleet, with random pauses between."""
    chance = random.Random(seed)  # noqa: S311 - a test's own dice

    async def pause() -> None:
        await asyncio.sleep(chance.uniform(1.5, 3.5))

    await pause()
    await fleet.kill("a")
    fleet.start("a")
    await pause()
    await fleet.kill("b")
    await pause()
    fleet.start("b2")
    await pause()
    fleet.start("d")
    await pause()
    server.restart()
    await pause()
    await fleet.kill(chance.choice(["a", "c", "d"]))
    await pause()
    fleet.start("e")
    await pause()
    await fleet.leave("b2")


async def flow(server: EmbeddedServer, kind: str, runs: list[str]) -> dict[str, float]:
    """Publish wave after wave, each run's steps in order; returns when each run was published."""
    published: dict[str, float] = {}
    async with connected(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc:
        js = nc.jetstream()
        for first in range(0, len(runs), WAVE):
            wave = runs[first : first + WAVE]
            for number in range(STEPS):
                await asyncio.gather(*(stubborn(js, kind, run_id, f"s{number}") for run_id in wave))
            published.update(dict.fromkeys(wave, time.time()))
            await asyncio.sleep(PAUSE_S)
    return published


async def stubborn(js: JetStreamContext, kind: str, run_id: str, step_id: str) -> None:
    """A task that the server did not confirm is published again; its id keeps it single."""
    while True:
        with contextlib.suppress(nats.errors.Error, OSError):
            await publish_task(js, kind, run_id, step_id)
            return
        await asyncio.sleep(0.1)


async def test_every_task_is_completed_in_order_whatever_happens(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    kind, diary = unique(), tmp_path / "diary"
    runs = [unique("r") for _ in range(RUNS)]
    fleet = Fleet(nats_server.url, kind, diary)
    try:
        for name in ("a", "b", "c"):
            fleet.start(name)
        async with connected(nats_server.url) as nc:
            await served(nc, kind, "a", "b", "c")
        breaking = asyncio.create_task(break_things(fleet, nats_server, seed=7))
        published = await flow(nats_server, kind, runs)
        await breaking
        async with connected(nats_server.url) as nc:
            await empty(nc, kind, 2 * BOUND_S)
            history = await history_of(nc, runs)
            await covered(nc, kind, *fleet.running)
    finally:
        await fleet.close()
    wrong = [run_id for run_id in runs if not in_order(history[run_id], STEPS)]
    assert not wrong, [[(e["type"], e["step_id"]) for e in history[one]] for one in wrong[:3]]
    assert {one.member for one in entries(diary)} >= {"a", "b", "c", "b2", "d", "e"}
    idle = longest_idle(kind, published, history)
    assert max(idle.values()) < IDLE_MAX_S, idle


def longest_idle(
    kind: str, published: dict[str, float], history: dict[str, list[dict[str, object]]]
) -> dict[int, float]:
    """For each partition the longest time in which it had something to do and completed nothing."""
    changes: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for run_id, at_s in published.items():
        number = partition_of(f"task.{kind}.{run_id}", PARTITIONS)
        changes[number].append((at_s, 1))
        ends = [float(str(e["at_s"])) for e in history[run_id] if e["type"] == "step.completed"]
        changes[number].append((max(ends), -1))
    found = {}
    for number, moments in changes.items():
        queued, since_s, longest_s = 0, 0.0, 0.0
        for at_s, change in sorted(moments):
            if queued:
                longest_s = max(longest_s, at_s - since_s if change < 0 else 0.0)
            if change < 0 or not queued:
                since_s = at_s
            queued += change
        found[number] = longest_s
    return found
