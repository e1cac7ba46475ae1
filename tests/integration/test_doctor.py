"""The doctor on real servers: sound ones, broken ones, and none.

Method: the command in a process of its own; its exit code, and the lines and the JSON that it
writes. Real: the command, the servers, what is broken in them. Fake: nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import in_background, run_command
from nats.js import JetStreamContext, api
from support import connected, free_port

from dagnats_worker import EmbeddedServer

pytestmark = [pytest.mark.server]

APP = """
from datetime import timedelta
from dagnats_worker import Worker

worker = Worker({url!r})

@worker.task("resize", ack_wait=timedelta(seconds=30))
def resize(width: int) -> int:
    return width
"""


@pytest.fixture
async def js(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    async with connected(nats_server.url) as client:
        yield client.jetstream()


def diagnosed(*arguments: str, cwd: Path | None = None) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the findings that are no praise."""
    done = run_command("doctor", "--json", *arguments, cwd=cwd)
    answer = json.loads(done.stdout)
    assert answer["code"] == done.returncode
    return done.returncode, [one for one in answer["findings"] if one["level"] != "ok"]


def app(folder: Path, url: str | None = None) -> Path:
    (folder / "app.py").write_text(APP.format(url=url))
    return folder


def test_sound_server_and_worker(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    url = nats_server.url
    with in_background("run", "app:worker", folder=app(tmp_path, url)) as worker:
        worker.wait_for("serves")
        done = run_command("doctor", "app:worker", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "nothing is wrong"
    assert "nats-server 2." in done.stdout
    assert url in done.stdout, "the worker's own server is looked at"
    assert "resize: workers-resize" in done.stdout
    quiet = run_command("doctor", "--quiet", "--url", url)
    assert quiet.stdout.splitlines() == ["nothing is wrong"]


def test_server_without_streams_stops_a_worker(empty_server: EmbeddedServer) -> None:
    code, wrong = diagnosed("--url", empty_server.url)
    assert code == 2
    stops = [one["what"].split()[0] for one in wrong if one["level"] == "stops"]
    assert stops == ["TASK_QUEUES", "WORKFLOW_HISTORY", "DEAD_LETTERS"]
    assert all("dagnats-worker setup" in one["remedy"] for one in wrong)


def test_no_server_is_a_finding_and_no_error() -> None:
    code, wrong = diagnosed("--url", f"nats://127.0.0.1:{free_port()}")
    assert (code, len(wrong)) == (2, 1)
    assert "no NATS server answered" in wrong[0]["what"]
    assert "dagnats-worker server" in wrong[0]["remedy"]


async def test_tasks_without_a_worker_are_found(
    nats_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    for number in range(3):
        await js.publish(f"task.resize.r-{number}", b"{}")
    code, (wrong,) = diagnosed("--url", nats_server.url)
    assert code == 1
    assert "resize (3 tasks)" in wrong["what"]
    config = api.ConsumerConfig(
        durable_name="workers-resize", filter_subject="task.resize.>", ack_wait=30
    )
    await js.add_consumer("TASK_QUEUES", config)
    code, (wrong,) = diagnosed("app:worker", "--url", nats_server.url, cwd=app(tmp_path))
    assert code == 1
    assert "workers-resize has 3 queued tasks, and no worker pulls from it" in wrong["what"]


async def test_durable_that_is_not_ours_is_found(
    nats_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    config = api.ConsumerConfig(
        durable_name="workers-resize", filter_subject="task.other.>", ack_wait=1, max_deliver=3
    )
    await js.add_consumer("TASK_QUEUES", config)
    code, wrong = diagnosed("app:worker", "--url", nats_server.url, cwd=app(tmp_path))
    assert code == 2
    texts = " ".join(one["what"] for one in wrong)
    assert "at most 3 times" in texts
    assert "AckWait of 1.0 s" in texts
    assert "two task types share that name" in texts


async def test_unacked_tasks_near_the_limit_are_found(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    config = api.ConsumerConfig(
        durable_name="workers-resize", filter_subject="task.resize.>", max_ack_pending=5
    )
    await js.add_consumer("TASK_QUEUES", config)
    for number in range(5):
        await js.publish(f"task.resize.r-{number}", b"{}")
    subscription = await js.pull_subscribe_bind(consumer="workers-resize", stream="TASK_QUEUES")
    await subscription.fetch(5)
    code, (wrong,) = diagnosed("--url", nats_server.url)
    assert code == 1
    assert "5 unacked tasks of at most 5" in wrong["what"]


async def test_group_beside_a_plain_consumer_is_found(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    name = "TASK_QUEUES-workers-resize"
    source = api.StreamSource(
        name="TASK_QUEUES",
        subject_transforms=[
            api.SubjectTransform(src="task.resize.>", dest="{{Partition(4)}}.task.resize.>")
        ],
    )
    await js.add_stream(
        api.StreamConfig(name=name, retention=api.RetentionPolicy.WORK_QUEUE, sources=[source])
    )
    assert diagnosed("--url", nats_server.url) == (0, [])
    config = api.ConsumerConfig(durable_name="workers-resize", filter_subject="task.resize.>")
    await js.add_consumer("TASK_QUEUES", config)
    code, (wrong,) = diagnosed("--url", nats_server.url)
    assert code == 2
    assert "workers-resize" in wrong["what"]
    assert name in wrong["what"]


ACCOUNT = """
authorization { users = [
  {user: owner, password: x},
  {user: mute, password: x, permissions: {publish: {deny: "$JS.API.>"}}},
  {user: narrow, password: x, permissions: {publish: {deny: "$JS.API.STREAM.LIST"}}},
] }
"""


@pytest.mark.parametrize(("user", "unseen"), [("mute", 4), ("narrow", 1)])
def test_what_the_user_may_not_see_is_not_taken_for_missing(
    user: str, unseen: int, server_installed: None, tmp_path: Path
) -> None:
    with EmbeddedServer(config=ACCOUNT) as server:
        url = server.url.replace("//", f"//{user}:x@")
        setup = run_command("setup", "--url", server.url.replace("//", "//owner:x@"))
        assert setup.returncode == 0, setup.stderr
        code, (wrong,) = diagnosed("app:worker", "--url", url, cwd=app(tmp_path))
    assert code == 1
    assert wrong["area"] == "server"
    assert wrong["what"].count("$JS.API.") == unseen
    assert "let this user" in wrong["remedy"]


def test_credentials_of_the_environment_serve_a_worker_that_has_none(
    server_installed: None, tmp_path: Path
) -> None:
    with EmbeddedServer(config=ACCOUNT) as server:
        user = {"NATS_USER": "owner", "NATS_PASSWORD": "x"}
        done = run_command("doctor", "app:worker", cwd=app(tmp_path, server.url), **user)
    assert "refused" not in done.stdout
    assert "TASK_QUEUES does not exist" in done.stdout


def test_module_that_is_broken_is_a_finding_beside_the_others(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("import not_there_at_all\n")
    code, (wrong,) = diagnosed("app:worker", "--url", nats_server.url, cwd=tmp_path)
    assert code == 2
    assert "not_there_at_all" in wrong["what"]


def test_problem_of_a_plugin_is_a_finding(nats_server: EmbeddedServer) -> None:
    done = run_command(
        "doctor", "--url", nats_server.url, DAGNATS_WORKER_DISABLE_PLUGINS="nobody-has-it"
    )
    assert done.returncode == 1
    assert "plugin: nobody-has-it" in done.stdout
