"""What keeps a worker from starting, and what it says then: the thing, the value, the remedy.

Method: real servers, without streams, without JetStream, with strangers' consumers; only the server
that is too old is played by a TCP listener of the test, because it cannot be installed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from fleet_support import BOUND_S, api, consumer_info, quick_worker, raw_consumer_info, seconds
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from support import connected, free_port, unique

from dagnats_worker import (
    ConnectError,
    Credentials,
    EmbeddedServer,
    StartError,
    UsageError,
    Worker,
    WorkerConfig,
)
from dagnats_worker._jetstream.provision import provision


async def nothing(ctx: Any) -> None:
    """A handler."""


async def refused(worker: Worker, *parts: str) -> str:
    """Start, and return the one line that says why that failed."""
    with pytest.raises(StartError) as caught:
        await worker.start()
    return checked(str(caught.value), *parts)


async def not_connected(worker: Worker, *parts: str) -> str:
    """Start, and return the one line that says why there is no connection."""
    with pytest.raises(ConnectError) as caught:
        await worker.start()
    return checked(str(caught.value), *parts)


def checked(text: str, *parts: str) -> str:
    assert "\n" not in text
    assert [part for part in parts if part not in text] == [], text
    return text


# ------------------------------------------------------------------------- the connection


async def test_no_server_is_a_bounded_wait_and_names_url_and_remedy() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    worker = Worker(url, config=WorkerConfig(connect_timeout=seconds(0.5)))
    worker.handle("any", nothing)
    began = time.monotonic()
    await not_connected(worker, url, "`dagnats-worker server`", "NATS_URL", "within 0.5 s")
    assert time.monotonic() - began < BOUND_S


async def test_password_is_never_part_of_a_message() -> None:
    port = free_port()
    worker = quick_worker(
        f"nats://ann:secret@127.0.0.1:{port}", config={"connect_timeout": seconds(0.3)}
    )
    worker.handle("any", nothing)
    text = await not_connected(worker, f"nats://127.0.0.1:{port}")
    assert "secret" not in text


@pytest.mark.parametrize("user", ["", "ann:wrong@", "sesame@"])
async def test_wrong_credentials_are_said_at_once(server_installed: None, user: str) -> None:
    config = 'authorization { user: "ann", password: "pass" }'
    async with EmbeddedServer(config=config) as server:
        worker = quick_worker(
            server.url.replace("//", f"//{user}"), config={"connect_timeout": seconds(60)}
        )
        worker.handle("any", nothing)
        async with asyncio.timeout(BOUND_S):
            await not_connected(worker, "refused the credentials", server.url)


async def test_package_that_the_credentials_need_is_named(
    shared_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)  # as if it were not installed
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    credentials = Credentials(nkey_seed=seed)
    worker = quick_worker(shared_server.url, config={"credentials": credentials})
    worker.handle("any", nothing)
    await not_connected(worker, "pip install 'nkeys'")


@asynccontextmanager
async def pretending(version: str) -> AsyncIterator[str]:
    """Something that greets as a nats-server of another version would."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "max_payload": 1048576, "headers": True}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("version", ["2.9.0", "2.10.26"])
async def test_old_server_is_refused_with_both_versions(version: str) -> None:
    async with pretending(version) as url:
        worker = quick_worker(url)
        worker.handle("any", nothing)
        await not_connected(worker, version, "2.11", "upgrade")


async def test_server_without_jetstream_is_a_start_error(server_installed: None) -> None:
    async with EmbeddedServer(config="jetstream: disabled") as server:
        worker = quick_worker(server.url)
        worker.handle("any", nothing)
        await refused(worker, "JetStream", "enabled")


async def test_client_that_is_not_connected_is_refused(shared_server: EmbeddedServer) -> None:
    async with connected(shared_server.url) as client:
        pass
    worker = quick_worker(client)
    worker.handle("any", nothing)
    await not_connected(worker, "not connected")


# ------------------------------------------------------------------------- streams


@pytest.mark.parametrize("missing", ["TASK_QUEUES", "WORKFLOW_HISTORY", "DEAD_LETTERS"])
async def test_missing_stream_is_named_with_the_remedy(
    empty_server: EmbeddedServer, missing: str
) -> None:
    async with connected(empty_server.url) as client:
        await provision(client.jetstream())
        await client.jetstream().delete_stream(missing)
    worker = quick_worker(empty_server.url)
    worker.handle("any", nothing)
    await refused(worker, missing, "`dagnats-worker setup`")


async def test_worker_that_could_not_start_starts_when_the_reason_is_gone(
    empty_server: EmbeddedServer,
) -> None:
    worker = quick_worker(empty_server.url)
    worker.handle("any", nothing)
    await refused(worker, "`dagnats-worker setup`")
    async with connected(empty_server.url) as client:
        await provision(client.jetstream())
    async with worker:
        assert worker.state == "running"


async def test_worker_without_handlers_does_not_start(shared_server: EmbeddedServer) -> None:
    await refused(quick_worker(shared_server.url), "no handlers", "@worker.task")


async def test_elastic_group_of_the_task_type_is_refused(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind = unique()
    stream = f"TASK_QUEUES-workers-{kind}"
    await js.add_stream(StreamConfig(name=stream, subjects=[f"elastic.{kind}"]))
    worker = quick_worker(shared_server.url)
    worker.handle(kind, nothing)
    await refused(worker, kind, stream, "twice")
    await js.delete_stream(stream)


# ------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("kinds", "groups", "named"),
    [
        (["send.email", "send-email"], [], ["'send.email'", "'send-email'", "share the durable"]),
        (["a", "a.b"], [], ["'a'", "'a.b'", "overlap"]),
        (["a", "a.b.c"], [], ["'a'", "'a.b.c'", "overlap"]),
        (["a"], ["g", "g"], ["'a'", "'g'", "twice"]),
        (["a", "a-b"], ["b-c", "c"], ["'a'", "'b-c'", "'a-b'", "'c'", "'workers-a-b-c'"]),
        (["a", "a.g"], ["g"], ["'a'", "'a.g'"]),
        (["größe", "gr____e"], [], ["'größe'", "'gr____e'", "share the durable"]),
    ],
)
async def test_names_that_collide_are_both_named(
    kinds: list[str], groups: list[str], named: list[str]
) -> None:
    # No server is there: the check comes before the connection.
    worker = quick_worker(f"nats://127.0.0.1:{free_port()}", groups=groups)
    for kind in kinds:
        worker.handle(kind, nothing)
    await refused(worker, *named)


def test_task_type_that_is_registered_twice_is_refused() -> None:
    worker = Worker()
    worker.handle("resize", nothing)
    with pytest.raises(UsageError, match=r"'resize' is handled by .*nothing already"):
        worker.handle("resize", nothing)


@pytest.mark.parametrize(
    "name", ["", "a b", "a\tb", "a*", "*", ">", "a.>", ".a", "a.", "a..b", "a\n", "a\x00", "\ud800"]
)
def test_name_that_cannot_be_a_subject_is_refused_at_the_call(name: str) -> None:
    with pytest.raises(ValueError, match="task type") as caught:
        Worker().handle(name, nothing)
    assert not name or repr(name) in str(caught.value)
    with pytest.raises(ValueError, match="group"):
        Worker(groups=["fine", name])


Make = Callable[[], Any]


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda: Worker(max_tasks=0), ValueError, ["max_tasks", "0"]),
        (lambda: Worker(max_tasks=-3), ValueError, ["max_tasks", "-3"]),
        (lambda: Worker(max_tasks=True), ValueError, ["max_tasks", "True"]),
        (lambda: Worker(max_tasks="4"), (TypeError, ValueError), ["max_tasks", "'4'"]),
        (lambda: Worker(worker_id=""), ValueError, ["worker id", "''"]),
        (lambda: Worker(worker_id="a.b"), ValueError, ["worker id", "'a.b'"]),
        (lambda: Worker(worker_id=7), TypeError, ["worker id", "7"]),
        (lambda: Worker(groups="gpu"), TypeError, ["groups", "'gpu'"]),
        (lambda: Worker(groups=[7]), TypeError, ["group", "7"]),
        (lambda: Worker(groups=None), TypeError, ["groups", "None"]),
        (lambda: Worker(partitions=-1), ValueError, ["partitions", "-1"]),
        (lambda: Worker(partitions=257), ValueError, ["partitions", "257"]),
        (lambda: Worker(partitions=1.5), TypeError, ["partitions", "1.5"]),
        (lambda: Worker(42), TypeError, ["connection", "42"]),
        (lambda: Worker(config=5), TypeError, ["config", "5"]),
        (lambda: Worker().handle(5, nothing), TypeError, ["task type", "5"]),
        (lambda: Worker().handle("a", None), TypeError, ["handler", "None"]),
        (lambda: Worker().handle("a", nothing, concurrency=0), ValueError, ["concurrency", "0"]),
        (lambda: Worker().handle("a", nothing, timeout=5), TypeError, ["timeout", "5"]),
        (
            lambda: Worker().handle("a", nothing, timeout=timedelta(0)),
            ValueError,
            ["timeout", "timedelta(0)"],
        ),
        (lambda: Worker().handle("a", nothing, ack_wait=30), TypeError, ["ack_wait", "30"]),
        (
            lambda: Worker().handle("a", nothing, ack_wait=timedelta(seconds=-1)),
            ValueError,
            ["ack_wait"],
        ),
        (lambda: Worker().handle("a", nothing, retry=3), TypeError, ["retry", "3"]),
        (lambda: Worker().handle("a", nothing, heartbeat="no"), TypeError, ["heartbeat", "'no'"]),
        (lambda: Worker().handle("a", nothing, executor="fork"), TypeError, ["executor", "'fork'"]),
        (lambda: Worker().handle("a", nothing, needs=["x"]), TypeError, ["needs", "'x'"]),
        (lambda: Worker().handle("a", nothing, concurrencey=2), UsageError, ["'concurrency'"]),
        (lambda: WorkerConfig(max_deliveries=0), ValueError, ["max_deliveries", "0"]),
        (lambda: WorkerConfig(waiting_max=timedelta(0)), ValueError, ["waiting_max"]),
        (lambda: WorkerConfig(drain_timeout=30), TypeError, ["drain_timeout", "30"]),
        (lambda: WorkerConfig(ack_pending_warning=0), ValueError, ["ack_pending_warning", "0"]),
    ],
)  # fmt: skip
def test_bad_argument_is_named_with_its_value(
    make: Make, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


async def test_registration_after_the_start_is_refused(shared_server: EmbeddedServer) -> None:
    worker = quick_worker(shared_server.url)
    worker.handle(unique(), nothing)
    async with worker:
        with pytest.raises(UsageError, match="too late"):
            worker.handle("later", nothing)


# ------------------------------------------------------------------------- consumers of others


async def make_consumer(js: JetStreamContext, name: str, filter_subject: str, **more: Any) -> None:
    """A consumer that somebody else has made."""
    config = {
        "name": name,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": filter_subject,
        **more,
    }
    answer = await api(
        js,
        f"CONSUMER.CREATE.TASK_QUEUES.{name}.{filter_subject}",
        {"stream_name": "TASK_QUEUES", "config": config},
    )
    assert "error" not in answer, answer


async def test_durable_of_another_task_type_under_our_name_is_refused(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    kind = unique()
    dotted = kind.replace("-", ".")
    await make_consumer(js, f"workers-{kind}", f"task.{dotted}.>", durable_name=f"workers-{kind}")
    worker = quick_worker(shared_server.url)
    worker.handle(kind, nothing)
    await refused(worker, f"workers-{kind}", f"task.{dotted}.>", f"task.{kind}.>", "rename")
    assert (await consumer_info(js, kind))["config"]["filter_subject"] == f"task.{dotted}.>"


async def test_task_type_named_like_the_group_of_another_is_refused(
    shared_server: EmbeddedServer,
) -> None:
    kind = unique()
    grouped = quick_worker(shared_server.url, groups=["b"])
    grouped.handle(kind, nothing)
    async with grouped:
        worker = quick_worker(shared_server.url)
        worker.handle(f"{kind}-b", nothing)
        await refused(worker, f"workers-{kind}-b", f"task.{kind}.b.>", f"task.{kind}-b.>")


@pytest.mark.parametrize(("theirs", "ours"), [("{}", "{}.sub"), ("{}.sub", "{}")])
async def test_durable_that_overlaps_ours_is_named(
    shared_server: EmbeddedServer, js: JetStreamContext, theirs: str, ours: str
) -> None:
    kind = unique()
    first, second = theirs.format(kind), ours.format(kind)
    async with connected(shared_server.url):
        other = quick_worker(shared_server.url)
        other.handle(first, nothing)
        async with other:
            worker = quick_worker(shared_server.url)
            worker.handle(second, nothing)
            await refused(
                worker,
                f"workers-{first.replace('.', '-')}'",
                f"workers-{second.replace('.', '-')}'",
                f"task.{first}.>",
                f"task.{second}.>",
            )


async def test_group_beside_a_worker_without_groups_is_refused_with_both_names(
    shared_server: EmbeddedServer,
) -> None:
    kind = unique()
    plain, grouped = quick_worker(shared_server.url), quick_worker(shared_server.url, groups=["eu"])
    plain.handle(kind, nothing)
    grouped.handle(kind, nothing)
    async with plain:
        await refused(grouped, f"'workers-{kind}'", f"'workers-{kind}-eu'", f"task.{kind}.eu.>")


async def test_orphaned_ephemeral_with_our_filter_is_removed(
    shared_server: EmbeddedServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    kind = unique()
    await make_consumer(js, "orphan-of-" + kind, f"task.{kind}.>", inactive_threshold=600 * 10**9)
    worker = quick_worker(shared_server.url)
    worker.handle(kind, nothing)
    async with worker:
        assert await consumer_info(js, kind)
    assert not await raw_consumer_info(js, "TASK_QUEUES", "orphan-of-" + kind)
    assert f"removing the orphaned consumer orphan-of-{kind}" in caplog.text


@pytest.mark.parametrize(
    ("name", "filter_subject", "more"),
    [
        ("other-{}", "task.{}.*", {"inactive_threshold": 600 * 10**9}),
        ("other-{}", "task.{}.>", {"durable_name": "other-{}"}),
    ],
    ids=["ephemeral with another filter", "durable with our filter"],
)
async def test_consumer_that_may_be_somebodys_is_left_alone_and_named(
    shared_server: EmbeddedServer,
    js: JetStreamContext,
    name: str,
    filter_subject: str,
    more: dict[str, Any],
) -> None:
    kind = unique()
    name, filter_subject = name.format(kind), filter_subject.format(kind)
    if "durable_name" in more:
        more = {"durable_name": name}
    await make_consumer(js, name, filter_subject, **more)
    worker = quick_worker(shared_server.url)
    worker.handle(kind, nothing)
    await refused(worker, name, filter_subject, f"workers-{kind}")
    assert await raw_consumer_info(js, "TASK_QUEUES", name)
    await js.delete_consumer("TASK_QUEUES", name)
