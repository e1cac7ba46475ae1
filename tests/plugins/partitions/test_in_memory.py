"""Handlers of partitioned task types in a test of their user: no server, no group.

Method: the published harness. Real: the worker, the plugin. Fake: the server, which is in memory.
"""

from __future__ import annotations

import pytest

from dagnats_worker import PluginError, StartError, TaskContext, Worker
from dagnats_worker.testing import WorkerHarness
from dagnats_worker_partitions import PartitionsPlugin


def partitioned(task_type: str) -> Worker:
    worker = Worker(plugins=[PartitionsPlugin()])

    @worker.task(task_type, partitions=4, ordered=True)
    async def ship(ctx: TaskContext, number: int) -> int:
        return number

    return worker


async def test_tasks_come_from_their_queue() -> None:
    async with WorkerHarness(partitioned("ship")) as harness:
        assert (await harness.run("ship", 3)).output == 3


async def test_names_that_a_group_cannot_have_are_refused_all_the_same() -> None:
    with pytest.raises((PluginError, StartError), match="dot"):
        async with WorkerHarness(partitioned("orders.ship")):
            pass
