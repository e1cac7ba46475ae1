"""The guard and its command on a real server.

Method: workers with the plugin, a client, and the command. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta
from typing import Any

from click.testing import CliRunner
from dagnats_worker import Client, EmbeddedServer, Worker

from dagnats_worker_idempotency import IdempotencyPlugin, IdempotencySettings
from dagnats_worker_idempotency._command import idempotency

BOUND_S = 30
SETTINGS = IdempotencySettings(check_every=timedelta(milliseconds=50))


async def charge_all(url: str, orders: list[str]) -> tuple[Counter[str], list[Any]]:
    """Charge orders on two workers; how often each was, and what each task has returned."""
    charged: Counter[str] = Counter()

    async def charge(order: dict[str, str]) -> str:
        charged[order["id"]] += 1
        await asyncio.sleep(0)
        return f"receipt of {order['id']}"

    workers = [Worker(url, plugins=[IdempotencyPlugin(SETTINGS)]) for _ in range(2)]
    for worker in workers:
        worker.handle("charge", charge, idempotency_key="id")
    async with workers[0], workers[1], Client(url, plugins=[]) as client:
        runs = [await client.submit("charge", {"id": order}) for order in orders]
        async with asyncio.timeout(BOUND_S):
            return charged, [await run.result() for run in runs]


async def test_of_many_tasks_with_one_key_one_runs(nats_server: EmbeddedServer) -> None:
    orders = [f"o-{n % 3}" for n in range(30)]
    charged, results = await charge_all(nats_server.url, orders)
    assert charged == {"o-0": 1, "o-1": 1, "o-2": 1}
    assert results == [f"receipt of {order}" for order in orders]


async def test_result_outlives_the_workers(nats_server: EmbeddedServer) -> None:
    await charge_all(nats_server.url, ["o-1"])
    charged, results = await charge_all(nats_server.url, ["o-1"])
    assert not charged
    assert results == ["receipt of o-1"]


def show(url: str, *arguments: str) -> tuple[int, str]:
    # The command returns its exit code, which `dagnats-worker` passes on.
    done = CliRunner().invoke(
        idempotency, ["show", *arguments, "--url", url], standalone_mode=False
    )
    assert done.exception is None, done.exception
    return done.return_value, done.output


def test_command_shows_the_result_of_a_key(nats_server: EmbeddedServer) -> None:
    asyncio.run(charge_all(nats_server.url, ["o-1"]))
    code, output = show(nats_server.url, "o-1")
    assert code == 0
    assert output.startswith("charge  done by ")
    assert output.endswith('\n"receipt of o-1"\n')
    code, output = show(nats_server.url, "o-1", "--json")
    [row] = json.loads(output)
    assert (row["task_type"], row["state"], row["output"]) == ("charge", "done", "receipt of o-1")


def test_command_says_that_a_key_is_unknown(nats_server: EmbeddedServer) -> None:
    asyncio.run(charge_all(nats_server.url, ["o-1"]))
    assert show(nats_server.url, "o-2", "--json") == (1, "[]\n")


def test_command_says_that_there_is_no_bucket(nats_server: EmbeddedServer) -> None:
    arguments = ["show", "o-1", "--url", nats_server.url]
    done = CliRunner().invoke(idempotency, arguments)
    assert done.exit_code == 1
    assert "there is no bucket 'idempotency'; a worker with the plugin makes it" in done.output
