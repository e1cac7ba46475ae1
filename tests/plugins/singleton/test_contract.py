"""What every plugin must be, and what this one refuses.

Method: the published contract; workers that ask for what cannot be. Real: the server, where one is
needed. Fake: the server in memory of the contract.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from singleton_support import SETTINGS, singleton_worker
from support import unique

from dagnats_worker import EmbeddedServer, PluginError, StartError, UsageError, Worker
from dagnats_worker.testing import PluginContract
from dagnats_worker_partitions import PartitionsPlugin
from dagnats_worker_singleton import SingletonPlugin, SingletonSettings


class TestContract(PluginContract):
    plugin_type = SingletonPlugin


def idle(ctx: Any) -> None:
    """Never runs."""


@pytest.mark.parametrize("field", ["ack_wait", "lease"])
def test_too_short_a_time_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is at least"):
        SingletonSettings(**{field: timedelta(seconds=0.5)})


def test_more_than_one_at_a_time_is_refused() -> None:
    worker = singleton_worker("nats://127.0.0.1:1", "w-1")
    with pytest.raises(ValueError, match="a singleton runs one handler at a time"):
        worker.handle_singleton("settle", idle, concurrency=2)
    worker.handle_singleton("settle", idle, concurrency=1)


def test_without_the_plugin_it_is_said_what_to_install() -> None:
    worker = Worker(plugins=[PartitionsPlugin()])
    with pytest.raises(UsageError, match=r"pip install 'dagnats-worker\[singleton\]'"):
        worker.handle_singleton("settle", idle)


@pytest.mark.server
@pytest.mark.parametrize("option", [{"partitions": 4}, {"ordered": True}])
async def test_split_singleton_is_refused_at_the_start(
    nats_server: EmbeddedServer, option: dict[str, Any]
) -> None:
    worker = singleton_worker(nats_server.url, "w-1")
    worker.handle_singleton(unique("one"), idle, **option)
    with pytest.raises((PluginError, StartError), match="leave the others out"):
        await worker.start()


@pytest.mark.server
async def test_dotted_task_type_is_refused_with_the_reason(nats_server: EmbeddedServer) -> None:
    worker = Worker(nats_server.url, plugins=[SingletonPlugin(SETTINGS), PartitionsPlugin()])
    worker.handle_singleton("accounts.settle", idle)
    with pytest.raises((PluginError, StartError), match="dot"):
        await worker.start()


@pytest.mark.server
async def test_singleton_beside_a_plain_worker_is_refused(nats_server: EmbeddedServer) -> None:
    kind = unique("one")
    plain = Worker(nats_server.url, plugins=[])
    plain.handle(kind, idle)
    worker = singleton_worker(nats_server.url, "w-1")
    worker.handle_singleton(kind, idle)
    async with plain:
        with pytest.raises((PluginError, StartError), match=f"workers-{kind}"):
            await worker.start()
