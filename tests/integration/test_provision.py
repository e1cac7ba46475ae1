"""Provisioning an account without an engine, and beside one.

Method: provision, then read the configurations back. Real: the server, a cluster, accounts with
their limits and permissions. Fake: the engine, which is its own requests, built from the table of
its resources in ``tests/vectors/resources.json``.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from support import connected, eventually, free_port

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._jetstream.provision import REQUIRED_STREAMS, missing, provision
from dagnats_worker.errors import StartError, TransportError

pytestmark = pytest.mark.server

TABLE = json.loads((Path(__file__).parents[1] / "vectors/resources.json").read_text())
STORE_BUDGET_BYTES = 10 * 1024**3
TWO_MINUTES_NS = 120_000_000_000

STREAMS = [stream["name"] for stream in TABLE["streams"]]
BUCKETS = [bucket["bucket"] for bucket in TABLE["kv_buckets"]]


def engine_stream(row: dict[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in row.items() if key != "max_bytes_fraction"}
    fraction = row["max_bytes_fraction"]
    return config | {"max_bytes": -1 if fraction is None else int(fraction * STORE_BUDGET_BYTES)}


def engine_bucket(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"KV_{row['bucket']}",
        "subjects": [f"$KV.{row['bucket']}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": row["ttl"],
        "duplicate_window": min(row["ttl"] or TWO_MINUTES_NS, TWO_MINUTES_NS),
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "num_replicas": 1,
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }


ENGINE = [
    *(engine_stream(row) for row in TABLE["streams"]),
    *(engine_bucket(row) for row in TABLE["kv_buckets"]),
]
OURS = ["parked_tasks"]


async def api(nc: Client, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    reply = await nc.request(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"")
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def test_all_resources_are_created_as_the_engine_would(empty_server: EmbeddedServer) -> None:
    async with connected(empty_server.url) as nc:
        created = await provision(nc.jetstream())
        assert sorted(created) == sorted(STREAMS + BUCKETS + OURS)
        for expected in ENGINE:
            actual = (await api(nc, f"STREAM.INFO.{expected['name']}"))["config"]
            shared = {key: actual.get(key) for key in expected if key != "max_bytes"}
            assert shared == {key: expected[key] for key in shared}
            assert actual["max_bytes"] == -1


async def test_engine_that_starts_later_can_take_over(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as nc:
        for config in ENGINE:
            answer = await api(nc, f"STREAM.UPDATE.{config['name']}", config)
            assert "error" not in answer, (config["name"], answer["error"])


async def test_history_allows_direct_reads(js: JetStreamContext) -> None:
    assert (await js.stream_info("WORKFLOW_HISTORY")).config.allow_direct


async def test_buckets_work_with_an_ordinary_client(js: JetStreamContext) -> None:
    bucket = await js.key_value("checkpoints")
    first = await bucket.put("provisioned.step", b"1")
    await bucket.update("provisioned.step", b"2", last=first)
    assert (await bucket.get("provisioned.step")).value == b"2"
    await bucket.purge("provisioned.step")
    with pytest.raises(NotFoundError):
        await bucket.get("provisioned.step")


async def test_second_run_creates_nothing(js: JetStreamContext) -> None:
    assert await provision(js) == []


async def test_stream_that_an_engine_made_is_not_changed(empty_server: EmbeddedServer) -> None:
    own = {"name": "TASK_QUEUES", "subjects": ["task.>"], "retention": "workqueue"}
    own |= {"storage": "memory", "num_replicas": 1, "max_bytes": 4096}
    async with connected(empty_server.url) as nc:
        before = (await api(nc, "STREAM.CREATE.TASK_QUEUES", own))["config"]
        assert "TASK_QUEUES" not in await provision(nc.jetstream())
        assert (await api(nc, "STREAM.INFO.TASK_QUEUES"))["config"] == before


class LooksTooEarly(JetStreamContext):
    """Sees no stream: what a look finds when an engine creates right after it."""

    async def stream_info(self, name: str, subjects_filter: str | None = None) -> Any:
        raise NotFoundError


async def test_engine_that_was_faster_is_left_alone(empty_server: EmbeddedServer) -> None:
    async with connected(empty_server.url) as nc:
        for config in ENGINE:
            assert "error" not in await api(nc, f"STREAM.CREATE.{config['name']}", config)
        before = [await api(nc, f"STREAM.INFO.{config['name']}") for config in ENGINE]
        await provision(LooksTooEarly(nc))
        after = [await api(nc, f"STREAM.INFO.{config['name']}") for config in ENGINE]
        assert [info["config"] for info in after] == [info["config"] for info in before]


async def test_two_provisioners_at_once_both_succeed(empty_server: EmbeddedServer) -> None:
    async with connected(empty_server.url) as nc, connected(empty_server.url) as other:
        created = await asyncio.gather(provision(nc.jetstream()), provision(other.jetstream()))
        assert {*created[0], *created[1]} == {*STREAMS, *BUCKETS, *OURS}
        assert await missing(nc.jetstream(), STREAMS + BUCKETS + OURS) == []


async def test_missing_names_what_a_worker_cannot_do_without(empty_server: EmbeddedServer) -> None:
    async with connected(empty_server.url) as nc:
        js = nc.jetstream()
        assert await missing(js) == list(REQUIRED_STREAMS)
        assert await missing(js, ["EVENTS", "workers"]) == ["EVENTS", "workers"]
        await provision(js)
        assert await missing(js) == []
        await js.delete_stream("DEAD_LETTERS")
        await js.delete_stream("KV_workers")
        assert await missing(js) == ["DEAD_LETTERS"]
        assert await missing(js, ["EVENTS", "workers"]) == ["workers"]


ACCOUNTS = """
accounts {
  idle { users: [{user: idle, password: x}] },
  small { jetstream: {max_streams: 2}, users: [{user: small, password: x}] },
  strict { jetstream: {max_bytes_required: true}, users: [{user: strict, password: x}] },
  closed { jetstream: enabled, users: [
    {user: mute, password: x, permissions: {publish: {deny: "$JS.API.>"}}},
    {user: reader, password: x, permissions: {publish: {deny: "$JS.API.STREAM.CREATE.>"}}},
    {user: owner, password: x},
  ]},
}
"""


@pytest.mark.parametrize(
    ("user", "error", "remedy"),
    [
        pytest.param("idle", StartError, "not enabled; .*the account of this user", id="disabled"),
        pytest.param("small", StartError, "maximum number of streams.*; raise the", id="no-room"),
        pytest.param("strict", StartError, "max bytes set; raise the", id="needs-max-bytes"),
        pytest.param("mute", TransportError, r"this user publish to \$JS\.API", id="may-not-ask"),
        pytest.param("reader", TransportError, r"TASK_QUEUES|WORKFLOW_HISTORY", id="may-not-make"),
    ],
)
async def test_account_that_does_not_allow_it_is_explained(
    user: str, error: type[Exception], remedy: str, server_installed: None
) -> None:
    async with (
        EmbeddedServer(config=ACCOUNTS) as server,
        connected(server.url, user=user, password="x") as nc,  # noqa: S106 - a test's server
    ):
        with pytest.raises(error, match=remedy):
            await provision(nc.jetstream(timeout=0.3))


async def test_user_who_may_only_read_passes_where_all_exists(server_installed: None) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(config=ACCOUNTS))
        owner, reader = [
            await stack.enter_async_context(connected(server.url, user=user, password="x"))  # noqa: S106 - a test's server
            for user in ("owner", "reader")
        ]
        await provision(owner.jetstream())
        assert await provision(reader.jetstream()) == []


async def test_server_without_jetstream_is_explained(server_installed: None) -> None:
    async with (
        EmbeddedServer(config="jetstream: disabled") as server,
        connected(server.url) as nc,
    ):
        for ask in (provision, missing):
            with pytest.raises(StartError, match="start the server with --jetstream"):
                await ask(nc.jetstream())


async def test_foreign_stream_on_the_same_subjects_is_explained(
    empty_server: EmbeddedServer,
) -> None:
    async with connected(empty_server.url) as nc:
        await nc.jetstream().add_stream(name="MINE", subjects=["task.>"])
        with pytest.raises(StartError, match=r"TASK_QUEUES: .*overlap.*; delete the other"):
            await provision(nc.jetstream())


async def test_closed_connection_is_a_transport_error(shared_server: EmbeddedServer) -> None:
    async with connected(shared_server.url) as nc:
        js = nc.jetstream()
    with pytest.raises(TransportError, match="connection closed"):
        await provision(js)


async def test_cluster_gets_the_replicas_that_were_asked_for(server_installed: None) -> None:
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    async with AsyncExitStack() as stack:
        for number, port in enumerate(ports):
            cluster = f"{{ name: c, listen: '127.0.0.1:{port}', routes: [{routes}] }}"
            server = EmbeddedServer(config=f"server_name: n{number}\ncluster {cluster}\n")
            await stack.enter_async_context(server)
        nc = await stack.enter_async_context(connected(server.url))
        js = nc.jetstream(timeout=30)

        async def has_leader() -> bool:
            try:
                return await missing(nc.jetstream(timeout=0.3)) != []
            except TransportError:
                return False

        await eventually(has_leader, within_s=30)
        await provision(js, replicas=3)
        copies = {
            name: (await js.stream_info(name)).config.num_replicas
            for name in ("TASK_QUEUES", "KV_workers", "STICKY_TASKS")
        }
        assert copies == {"TASK_QUEUES": 3, "KV_workers": 3, "STICKY_TASKS": 1}
