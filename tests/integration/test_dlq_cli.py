"""The commands that look at dead letters and replay them.

Method: the command in a process of its own; its output, its exit code, and what is in the streams
after it. Real: the command, the server, a worker that gives tasks up. Fake: the letters of an
engine, written as its vectors say.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli_support import in_background, on_terminal, one_error_line, run_command
from nats.js import JetStreamContext
from support import connected, eventually

from dagnats_worker import Client, EmbeddedServer, NonRetryableError, TaskFailedError, Worker
from dagnats_worker._letters import read_letter

pytestmark = [pytest.mark.server]

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "wire.json").read_text())
(ENGINES,) = [one for one in VECTORS if one["name"] == "engine.dead_letter"]
(REPLAYED,) = [one for one in VECTORS if one["name"] == "task.dlq_replay"]

APP = """
import os
from dagnats_worker import NonRetryableError, TaskContext, Worker

worker = Worker({groups})

@worker.task("charge")
async def charge(ctx: TaskContext, amount: int) -> dict:
    if "FIXED" not in os.environ:
        raise NonRetryableError(f"no cover for {{amount}} €")
    return {{"charged": amount, "attempt": ctx.attempt}}

@worker.task("greet")
async def greet(ctx: TaskContext, who: dict) -> str:
    await ctx.put_stream("a chunk")
    return f"Hello, {{who['name']}}!"
"""


@pytest.fixture
async def js(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    async with connected(nats_server.url) as client:
        yield client.jetstream()


@pytest.fixture
async def dead_charge(nats_server: EmbeddedServer) -> str:
    """The run whose task a worker has given up; its letter is the first."""

    async def charge(amount: int) -> None:
        raise NonRetryableError(f"no cover for {amount} €")

    worker = Worker(nats_server.url, plugins=())
    worker.handle("charge", charge)
    async with worker, Client(nats_server.url, plugins=()) as client:
        run = await client.submit("charge", 5)
        with pytest.raises(TaskFailedError):
            await run.result()
        return run.run_id


def app(folder: Path, groups: str = "") -> Path:
    (folder / "app.py").write_text(APP.format(groups=groups))
    return folder


async def tasks_in(js: JetStreamContext) -> int:
    return (await js.stream_info("TASK_QUEUES")).state.messages


async def add_letters_of_engine(js: JetStreamContext, count: int = 1) -> None:
    for number in range(count):
        headers = {**ENGINES["headers"], "Nats-Msg-Id": f"dlq:{number}"}
        await js.publish(ENGINES["subject"], ENGINES["wire"].encode(), headers=headers)


# ------------------------------------------------------------------------- list and show


async def test_letters_of_a_worker_are_listed_and_shown(
    nats_server: EmbeddedServer, dead_charge: str
) -> None:
    url = nats_server.url
    listed = run_command("dlq", "list", "--url", url).stdout
    heading, row = listed.splitlines()
    assert heading.split() == ["SEQ", "AGE", "TYPE", "RUN", "STEP", "TRIES", "ERROR"]
    assert row.split()[0] == "1"
    assert dead_charge in row
    assert row.endswith("no cover for 5 €")
    shown = run_command("dlq", "show", "1", "--url", url).stdout
    assert '"input": 5' in shown
    assert "no cover for 5 €" in shown
    as_json = json.loads(run_command("dlq", "show", "1", "--json", "--url", url).stdout)
    assert as_json["run_id"] == as_json["task"]["run_id"] == dead_charge
    assert (as_json["attempts"], as_json["kind"]) == (1, "task")
    raw = run_command("dlq", "show", "1", "--raw", "--url", url).stdout
    assert json.loads(raw) == as_json["task"]


async def test_newest_are_listed_and_types_are_filtered(
    nats_server: EmbeddedServer, js: JetStreamContext, dead_charge: str
) -> None:
    await add_letters_of_engine(js, 600)
    url = nats_server.url
    lines = run_command("dlq", "list", "-n", "2", "--json", "--url", url).stdout.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [600, 601]
    assert json.loads(lines[0])["error"] == "connection refused"
    found = run_command("dlq", "list", "--type", "charge", "--json", "--url", url).stdout
    assert [json.loads(line)["run_id"] for line in found.splitlines()] == [dead_charge]
    assert "no dead letters of task type 'other'" in (
        run_command("dlq", "list", "--type", "other", "--url", url).stderr
    )
    assert (await js.stream_info("DEAD_LETTERS")).state.consumer_count == 0, "cleaned up"


async def test_deleted_letters_do_not_shorten_the_list(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    await add_letters_of_engine(js, 6)
    for sequence in (3, 4, 5):
        await js.delete_msg("DEAD_LETTERS", sequence)
    done = run_command("dlq", "list", "-n", "2", "--json", "--url", nats_server.url)
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == [2, 6]


async def test_unreadable_letter_and_event_are_told_apart(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    await js.publish("task.charge.r-1", b"\xff no task")
    worker = Worker(nats_server.url, plugins=())
    worker.handle("charge", lambda ctx: None)

    async def letters() -> int:
        return (await js.stream_info("DEAD_LETTERS")).state.messages

    async with worker:
        await eventually(letters, what="the letter")
    await js.publish(
        "dead.orchestrator.step.completed.r-2",
        b"{}",
        headers={"Dagnats-Dlq-Event-Type": "step.completed"},
    )
    url = nats_server.url
    lines = run_command("dlq", "list", "--json", "--url", url).stdout.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["unreadable", "event"]
    assert "\\xff no task" in run_command("dlq", "show", "1", "--url", url).stdout
    for sequence, reason in (("1", "cannot be decoded"), ("2", "not a task")):
        done = run_command("dlq", "replay", sequence, "--publish", "--url", url)
        assert reason in one_error_line(done)
        assert done.returncode == 1


def test_nothing_there_is_said_and_no_error(nats_server: EmbeddedServer) -> None:
    done = run_command("dlq", "list", "--url", nats_server.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert "there are no dead letters" in done.stderr
    missing = run_command("dlq", "show", "7", "--url", nats_server.url)
    assert "there is no dead letter 7" in one_error_line(missing)


@pytest.mark.parametrize("command", [["list"], ["show", "1"], ["replay", "1", "--publish"]])
def test_missing_stream_names_the_command_that_creates_it(
    empty_server: EmbeddedServer, command: list[str]
) -> None:
    done = run_command("dlq", *command, "--url", empty_server.url)
    assert "dagnats-worker setup" in one_error_line(done)
    assert done.returncode == 1


async def test_long_error_is_cut_to_the_terminal(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    headers = {**ENGINES["headers"], "Dagnats-Dlq-Error": "long " * 60}
    await js.publish(ENGINES["subject"], ENGINES["wire"].encode(), headers=headers)
    screen = on_terminal("dlq", "list", "--url", nats_server.url, columns=100)
    assert max(map(len, screen.lines)) <= 100
    assert any(line.endswith("…") for line in screen.lines)


async def test_what_others_wrote_does_not_steer_the_terminal(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    headers = {**ENGINES["headers"], "Dagnats-Dlq-Error": "no \x1b[2J\x9b2J cover"}
    await js.publish(ENGINES["subject"], b"\x1b[2J is no task", headers=headers)
    for command in (["list"], ["show", "1"]):
        screen = on_terminal("dlq", *command, "--url", nats_server.url, columns=200)
        shown = "\n".join(screen.lines)
        assert r"no \x1b[2J\x9b2J cover" in shown
        assert (r"\x1b[2J is no task" in shown) == (command[0] == "show")


def test_user_who_may_not_read_is_told_what_is_missing(server_installed: None) -> None:
    config = 'authorization { users = [{user: mute, password: x, permissions: {publish: "a"}}] }'
    with EmbeddedServer(config=config) as server:
        done = run_command("dlq", "show", "1", "--url", server.url.replace("//", "//mute:x@"))
    assert "let this user publish to $JS.API.>" in one_error_line(done)


# ------------------------------------------------------------------------- replay


async def test_replay_runs_the_handler_here_and_publishes_nothing(
    nats_server: EmbeddedServer, js: JetStreamContext, dead_charge: str, tmp_path: Path
) -> None:
    events_before = (await js.stream_info("WORKFLOW_HISTORY")).state.last_seq
    failed = run_command(
        "dlq", "replay", "1", "app:worker", "--url", nats_server.url, cwd=app(tmp_path)
    )
    assert failed.returncode == 1
    assert "failed (non_retriable): no cover for 5 €" in failed.stderr
    fixed = run_command(
        "dlq", "replay", "1", "app:worker", "--url", nats_server.url, cwd=tmp_path, FIXED="1"
    )
    assert (fixed.returncode, json.loads(fixed.stdout)["charged"]) == (0, 5)
    assert await tasks_in(js) == 0
    assert (await js.stream_info("WORKFLOW_HISTORY")).state.last_seq == events_before


async def test_replay_of_a_letter_of_the_engine_runs_with_its_input(
    nats_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    await add_letters_of_engine(js)
    folder = app(tmp_path, groups="groups=['gpu']")
    done = run_command(
        "dlq", "replay", "1", "app:worker", "--json", "--url", nats_server.url, cwd=folder
    )
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["output"]) == ("completed", "Hello, Ada!")
    assert answer["published"] is None


async def test_published_replay_is_the_message_that_an_engine_would_send(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    await add_letters_of_engine(js)
    done = run_command("dlq", "replay", "1", "--publish", "--url", nats_server.url)
    assert done.returncode == 0
    (task,) = [await js.get_msg("TASK_QUEUES", 1)]
    assert task.subject == ENGINES["headers"]["Dagnats-Dlq-Task-Subject"]
    assert task.headers == REPLAYED["headers"]
    assert task.data == ENGINES["wire"].encode()


async def test_queued_replay_is_run_by_the_fleet(
    nats_server: EmbeddedServer, dead_charge: str, tmp_path: Path
) -> None:
    url = nats_server.url
    folder = app(tmp_path)
    with in_background("run", "app:worker", "--url", url, folder=folder, FIXED="1") as worker:
        worker.wait_for("serves")
        done = run_command(
            "dlq", "replay", "1", "app:worker", "--publish", "--url", url, cwd=folder, FIXED="1"
        )
        assert done.returncode == 0
        assert "queued again as message" in done.stderr

        def completed() -> bool:
            history = run_command("events", dead_charge, "--json", "--url", url).stdout
            return '"step.completed"' in history

        await eventually(completed, what="the outcome")


async def test_replay_that_fails_here_is_not_queued(
    nats_server: EmbeddedServer, js: JetStreamContext, dead_charge: str, tmp_path: Path
) -> None:
    done = run_command(
        "dlq",
        "replay",
        "1",
        "app:worker",
        "--publish",
        "--url",
        nats_server.url,
        cwd=app(tmp_path),
    )
    assert done.returncode == 1
    assert "nothing was published" in done.stderr
    assert await tasks_in(js) == 0


async def test_mistakes_are_told_in_one_line(
    nats_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    await add_letters_of_engine(js)
    url = nats_server.url
    neither = run_command("dlq", "replay", "1", "--url", url)
    assert "give MODULE:WORKER" in one_error_line(neither)
    assert neither.returncode == 2
    (tmp_path / "other.py").write_text(
        "from dagnats_worker import Worker\nworker = Worker()\n"
        "worker.handle('resize', lambda ctx: None)\n"
    )
    other = run_command("dlq", "replay", "1", "other:worker", "--url", url, cwd=tmp_path)
    assert "does not serve task type 'greet', but resize" in one_error_line(other)


# ------------------------------------------------------------------------- reading a letter


def test_letter_without_headers_is_read_from_its_subject() -> None:
    letter = read_letter(3, datetime.now(UTC), "dead.charge.r-1.step.x", {}, b'{"run_id":"r-1"}')
    assert (letter.task_type, letter.run_id, letter.step_id) == ("charge", "r-1", "step.x")
    assert letter.kind == "unreadable"


async def test_escapes_in_an_event_do_not_reach_the_terminal(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    event = {
        "type": "step.failed",
        "run_id": "r-1",
        "step_id": "s",
        "payload": {"error": "\x1b[2J"},
    }
    await js.publish("history.r-1", json.dumps(event).encode())
    done = run_command("events", "r-1", "--url", nats_server.url)
    assert done.returncode == 0, done.stderr
    assert "\\x1b[2J" in done.stdout
