"""What a client refuses before anything is sent, and what it sends.

Method: a client on an in-memory server, whose streams are looked at. Fake: that server. What
becomes of a submitted task is told in contract/test_errors_mapping.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from hook_support import plugin_with

from dagnats_worker import Client, UsageError
from dagnats_worker.errors import PublishError
from dagnats_worker.hookspecs import Message
from dagnats_worker.testing import MemoryServer, MemoryTransport, StoredMessage

TASKS, HISTORY = "TASK_QUEUES", "WORKFLOW_HISTORY"


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
async def client(server: MemoryServer) -> AsyncIterator[Client]:
    async with Client(MemoryTransport(server), plugins=[]) as client:
        yield client


def only_task(server: MemoryServer) -> tuple[StoredMessage, dict[str, Any]]:
    (message,) = server.messages(TASKS)
    return message, json.loads(message.data)


async def test_task_is_sent_as_the_engine_sends_it(client: Client, server: MemoryServer) -> None:
    run = await client.submit("shout", {"a": 1}, metadata={"team": "blue"}, headers={"X-A": "b"})
    message, body = only_task(server)
    assert message.subject == f"task.shout.{run.run_id}"
    assert message.headers == {"X-A": "b", "Nats-Msg-Id": f"{run.run_id}.shout.queued"}
    assert body == {
        "task_id": f"{run.run_id}.shout",
        "run_id": run.run_id,
        "step_id": "shout",
        "input": {"a": 1},
        "metadata": {"team": "blue"},
    }
    assert not run.duplicate


async def test_group_and_names_of_the_users_own(client: Client, server: MemoryServer) -> None:
    run = await client.submit("shout.loud", run_id="r1", step_id="a.b c", group="gpu")
    message, body = only_task(server)
    assert message.subject == "task.shout.loud.gpu.r1"
    assert (run.run_id, run.step_id) == ("r1", "a.b c")
    assert (body["run_id"], body["step_id"], body["task_id"]) == ("r1", "a.b c", "r1.a.b c")


@pytest.mark.parametrize(
    ("value", "sent"), [((), {}), ((None,), {"input": None}), ((b"[1]",), {"input": [1]})]
)
async def test_no_input_is_not_null(
    client: Client, server: MemoryServer, value: tuple[Any, ...], sent: dict[str, Any]
) -> None:
    await client.submit("shout", *value)
    _, body = only_task(server)
    assert {name: body[name] for name in body if name == "input"} == sent


async def test_same_run_submitted_again_is_known(client: Client, server: MemoryServer) -> None:
    first = await client.submit("shout", run_id="r1")
    again = await client.submit("shout", run_id="r1")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert len(server.messages(TASKS)) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"task_type": ""}, ValueError, "task type is empty"),
        ({"task_type": "a b"}, ValueError, "task type 'a b'"),
        ({"task_type": 7}, TypeError, "task type is a text"),
        ({"group": ""}, ValueError, "group is empty"),
        ({"group": "*"}, ValueError, "group"),
        ({"run_id": "a.b"}, ValueError, "run_id is a single NATS token, got 'a.b'"),
        ({"run_id": 7}, ValueError, "run_id is a single NATS token, got 7"),
        ({"run_id": "r" * 257}, ValueError, "run_id has at most 256 characters, got 257"),
        ({"step_id": "a\nb"}, ValueError, "no worker could read this task: .*step_id"),
        ({"step_id": "s" * 1025}, ValueError, "no worker could read this task: .*step_id"),
        ({"step_id": 7}, ValueError, "no worker could read this task: .*step_id"),
        ({"metadata": {"a": 1}}, ValueError, "no worker could read this task: .*metadata"),
        ({"headers": {"a": "b\r\nc: d"}}, ValueError, "header 'a'"),
        ({"headers": {"a:b": "c"}}, ValueError, "header 'a:b'"),
        ({"headers": {"": "c"}}, ValueError, "header ''"),
        ({"headers": {"a": 1}}, TypeError, "a header is a text with a text"),
        ({"input": float("nan")}, UsageError, "JSON"),
        ({"input": b"not JSON"}, UsageError, "JSON"),
        ({"input": "x" * 2_000_000}, UsageError, "store the input elsewhere and send a reference"),
    ],
)
async def test_task_that_nobody_could_run_is_refused(
    client: Client,
    server: MemoryServer,
    arguments: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        await client.submit(**{"task_type": "shout", **arguments})
    assert server.messages(TASKS) == []


@pytest.mark.parametrize("run_id", ["", "a.b", "a b", "*", ">", "a\n", 7, None])
async def test_what_is_no_run_id_is_refused_everywhere(client: Client, run_id: Any) -> None:
    for call in (client.cancel, client.status, lambda one: client.signal(one, "go")):
        with pytest.raises(ValueError, match="run_id is a single NATS token, got "):
            await call(run_id)
    with pytest.raises(ValueError, match="run_id is a single NATS token, got "):
        client.run(run_id)


async def test_cancel_is_asked_for_as_the_engine_expects_it(
    client: Client, server: MemoryServer
) -> None:
    await client.run("r1").cancel()
    (message,) = server.messages(HISTORY)
    assert message.subject == "history.r1"
    assert message.headers["Nats-Msg-Id"] == "r1.workflow.cancelled"
    body = json.loads(message.data)
    assert (body["type"], body["run_id"]) == ("workflow.cancelled", "r1")
    assert (await client.status("r1")).status == "cancelled"


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"\xff raw", b"\xff raw"), (None, b"null"), ({"a": 1}, b'{"a":1}'), ("text", b'"text"')],
)
async def test_signal_is_a_key_of_its_bucket(client: Client, data: Any, value: bytes) -> None:
    await client.run("r1").signal("go", data)
    entry = await client.transport.key_value("signals").get("r1.go")
    assert entry is not None
    assert entry.value == value


@pytest.mark.parametrize("name", ["", "a b", "*"])
async def test_signal_that_is_no_key_is_refused(client: Client, name: str) -> None:
    with pytest.raises(ValueError, match=r"name of a signal .* is not usable"):
        await client.signal("r1", name)


@pytest.mark.parametrize("name", ["", None])
async def test_workflow_to_start_has_a_name(client: Client, name: Any) -> None:
    with pytest.raises(UsageError, match="name of a registered workflow"):
        await client.start_workflow(name)


async def test_plugins_see_what_is_asked_of_the_engine(server: MemoryServer) -> None:
    async def pre_publish(message: Message) -> None:
        seen.append((message.subject, dict(message.headers)))

    seen: list[tuple[str, dict[str, str]]] = []
    server.respond("api.>", lambda _subject, _data: b'{"run_id":"r1"}')
    plugins = [plugin_with(pre_publish=pre_publish)]
    async with Client(MemoryTransport(server), plugins=plugins) as client:
        assert (await client.start_workflow("welcome")).run_id == "r1"
    assert seen == [("api.runs.start", {})]


async def test_bad_definition_is_not_sent(client: Client, server: MemoryServer) -> None:
    server.respond("api.>", lambda _subject, _data: pytest.fail("this would end the engine"))
    with pytest.raises(UsageError, match="needs a name"):
        await client.register_workflow({"steps": []})


async def test_task_that_the_queue_refuses_is_an_error(
    client: Client, server: MemoryServer
) -> None:
    server.faults.fail_publishes(1, "task.>", code=10060)
    with pytest.raises(PublishError):
        await client.submit("shout")


async def test_client_that_is_not_connected_says_what_to_do(server: MemoryServer) -> None:
    client = Client(MemoryTransport(server), plugins=[])
    with pytest.raises(UsageError, match=r"use `async with Client\(...\) as client`"):
        await client.submit("shout")
    with pytest.raises(UsageError, match="not connected"):
        await client.run("r1").result(timedelta(seconds=1))
