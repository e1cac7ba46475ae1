"""The durables that a whole fleet shares: as the Go worker makes them, and left as they are.

Method: a real server; what a worker has made is read back from it and compared with golden vectors
of the Go worker. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fleet_support import api, completed, consumer_info, quick_worker, seconds
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique

from dagnats_worker import EmbeddedServer, TaskContext

VECTORS = Path(__file__).parents[1] / "vectors"
WIRE = json.loads((VECTORS / "wire.json").read_text("utf-8"))


def golden(name: str) -> dict[str, Any]:
    """What the Go worker asks the server for."""
    [vector] = [one for one in WIRE if one["name"] == name]
    config: dict[str, Any] = vector["body"]["config"]
    return config


async def nothing(ctx: TaskContext) -> None:
    """A handler."""


def without_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """Without what the server adds about itself."""
    return {key: value for key, value in config.items() if key != "metadata"}


async def read_back(js: JetStreamContext, config: dict[str, Any]) -> dict[str, Any]:
    """What the server makes of a golden configuration, and how it reads it back."""
    name, filter_subject = config["name"], config["filter_subject"]
    answer = await api(
        js,
        f"CONSUMER.CREATE.TASK_QUEUES.{name}.{filter_subject}",
        {"stream_name": "TASK_QUEUES", "config": config, "action": ""},
    )
    await js.delete_consumer("TASK_QUEUES", name)
    return without_metadata(answer["config"])


@pytest.mark.parametrize(
    ("vector", "kind", "groups", "options"),
    [
        ("consumer.default", "greet", [], {}),
        ("consumer.group", "mail.send", ["eu"], {"ack_wait": seconds(2)}),
    ],
)
async def test_durable_is_exactly_the_one_of_the_go_worker(
    nats_server: EmbeddedServer, vector: str, kind: str, groups: list[str], options: dict[str, Any]
) -> None:
    async with connected(nats_server.url) as client:
        js = client.jetstream()
        expected = await read_back(js, golden(vector))
        worker = quick_worker(nats_server.url, groups=groups)
        worker.handle(kind, nothing, **options)
        async with worker:
            info = await consumer_info(js, kind, *groups)
            assert without_metadata(info["config"]) == expected
        assert await consumer_info(js, kind, *groups), "it stays when the worker goes"


async def test_durable_that_a_go_worker_made_is_used_as_it_is(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, run_id = unique(), unique()
    config = golden("consumer.default") | {
        "name": f"workers-{kind}",
        "durable_name": f"workers-{kind}",
        "filter_subject": f"task.{kind}.>",
        "ack_wait": 7_000_000_000,
        "max_ack_pending": 5000,
    }
    created = await api(
        js,
        f"CONSUMER.CREATE.TASK_QUEUES.workers-{kind}.task.{kind}.>",
        {"stream_name": "TASK_QUEUES", "config": config, "action": ""},
    )
    worker = quick_worker(shared_server.url)
    worker.handle(kind, nothing)
    async with worker:
        await publish_task(js, kind, run_id)
        await completed(js, run_id)
        assert worker._running._intakes[0]._source.ack_wait == seconds(7)
    assert (await consumer_info(js, kind))["config"] == created["config"]


async def test_lease_that_was_asked_for_changes_the_durable_with_a_warning(
    shared_server: EmbeddedServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    kind = unique()
    first, second, third = (quick_worker(shared_server.url) for _ in range(3))
    first.handle(kind, nothing, ack_wait=seconds(11))
    async with first:
        second.handle(kind, nothing)
        async with second:
            assert await ack_wait_s(js, kind) == 11
        assert "AckWait" not in caplog.text
        third.handle(kind, nothing, ack_wait=seconds(13))
        before = without_metadata((await consumer_info(js, kind))["config"])
        async with third:
            assert await ack_wait_s(js, kind) == 13
        assert f"workers-{kind} has AckWait 0:00:11" in caplog.text
        after = without_metadata((await consumer_info(js, kind))["config"])
        assert {**before, "ack_wait": 13 * 10**9} == after


async def ack_wait_s(js: JetStreamContext, kind: str) -> float:
    """AckWait as the server has it, in seconds."""
    nanoseconds: int = (await consumer_info(js, kind))["config"]["ack_wait"]
    return nanoseconds / 1e9


async def test_twenty_workers_that_start_at_once_share_one_durable(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind, runs = unique(), [unique() for _ in range(40)]
    workers = [quick_worker(shared_server.url) for _ in range(20)]
    for worker in workers:
        worker.handle(kind, nothing)
    await asyncio.gather(*(worker.start() for worker in workers))
    try:
        for run_id in runs:
            await publish_task(js, kind, run_id)
        for run_id in runs:
            await completed(js, run_id)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    assert sum(worker.stats().completed for worker in workers) == 40


async def test_durable_that_is_nearly_full_is_warned_of(
    shared_server: EmbeddedServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    kind, release = unique(), asyncio.Event()
    worker = quick_worker(shared_server.url, config={"consumer_check_every": seconds(0.1)})

    @worker.task(kind)
    async def hold(ctx: TaskContext) -> None:
        await release.wait()

    async with worker:
        config = (await consumer_info(js, kind))["config"]
        await api(
            js,
            f"CONSUMER.CREATE.TASK_QUEUES.workers-{kind}.task.{kind}.>",
            {"stream_name": "TASK_QUEUES", "config": {**config, "max_ack_pending": 10}},
        )
        with caplog.at_level(logging.WARNING):
            for number in range(8):
                assert "unacked tasks" not in caplog.text, number
                await publish_task(js, kind, unique())
            await eventually(lambda: "holds 8 unacked tasks of at most 10" in caplog.text)
        release.set()
