"""``dagnats-worker groups``, as people and scripts run it.

Method: the command in a process of its own, on a pipe or on a terminal, against a real nats-server
with groups whose members are played by hand. Real: the command, the server. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cli_support import BOUND_S, COMMAND, environment, on_terminal, one_error_line, run_command
from nats.aio.client import Client
from support import connected, eventually

from dagnats_worker import EmbeddedServer
from dagnats_worker_partitions import (
    GroupConfig,
    Mapping,
    PartitionFilter,
    add_members,
    create_group,
    drop_members,
    list_groups,
    set_mappings,
)
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._look import GroupInfo, MemberInfo, PartitionInfo
from dagnats_worker_partitions._names import ELASTIC_BUCKET, group_stream
from dagnats_worker_partitions._record import Record
from dagnats_worker_partitions._rules import filters_of
from dagnats_worker_partitions._table import group_lines, ranges

STREAM, GROUP = "TASK_QUEUES", "workers-email"
FILTERS = [PartitionFilter("task.email.>")]
MINUTE_NS = 60 * 10**9


@pytest.fixture
async def admin(nats_server: EmbeddedServer) -> AsyncIterator[Client]:
    async with connected(nats_server.url) as nc:
        yield nc


@pytest.fixture
def groups(nats_server: EmbeddedServer) -> Callable[..., Any]:
    """Runs the command, while members of this process go on."""

    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(run_command, "groups", *arguments, NATS_URL=nats_server.url)

    return run


async def make(nc: Client, *members: str, messages: int = 0) -> Record:
    """A group of four partitions; the first of the members reads what it has."""
    await create_group(nc, STREAM, GROUP, 4, FILTERS, max_buffered_messages=1024)
    record = await add_members(nc, STREAM, GROUP, members)
    stream = group_stream(STREAM, GROUP)
    for number in range(messages):
        await nc.jetstream().publish(f"task.email.{number}", b"x")

    async def sourced() -> bool:
        info = await nc.jetstream().stream_info(stream)
        return info.state.messages == messages

    await eventually(sourced, BOUND_S)
    for member in members[:1]:
        config = {
            "name": member,
            "ack_policy": "explicit",
            "max_ack_pending": 1,
            "inactive_threshold": MINUTE_NS,
            "filter_subjects": filters_of(record.config, member),
            "priority_groups": ["PCG"],
            "priority_policy": "pinned_client",
            "priority_timeout": MINUTE_NS,
        }
        await JetStreamApi(nc).ask(
            f"CONSUMER.CREATE.{stream}.{member}", {"stream_name": stream, "config": config}
        )
    return record


async def pull_one(nc: Client, member: str) -> None:
    answers = await nc.subscribe("inbox.>")
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{group_stream(STREAM, GROUP)}.{member}"
    body = {"batch": 1, "expires": MINUTE_NS, "group": "PCG"}
    await nc.publish(subject, json.dumps(body).encode(), reply="inbox.1")
    await answers.next_msg(timeout=BOUND_S)


def table(output: str, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with a word."""
    lines = output.splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[begin + 1 :]:
        if not line.strip():
            break
        rows.append(line.split())
    return rows


# -------------------------------------------------------------------------------------- show


async def test_show_has_a_row_for_each_partition(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin, "w1", "w2", messages=12)
    await pull_one(admin, "w1")
    done = await groups("show", GROUP)
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout, "PARTITION")
    assert [row[:3] for row in rows] == [
        ["0", "w1", "pinned"],
        ["1", "w1", "pinned"],
        ["2", "w2", "none"],
        ["3", "w2", "none"],
    ]
    depths = [int(row[3]) for row in rows]
    assert sum(depths) == 12
    assert rows[0][4:] == [str(depths[0] + depths[1] - 1), "1"]
    assert len(rows[1]) == 4
    assert "4 of task.email.> by subject" in done.stdout
    assert "12 of 1024" in done.stdout
    assert "2, 1 of them active" in done.stdout
    assert (
        f"nobody reads 2-3: w2 is changing, or dead: `dagnats-worker groups drop {GROUP} w2`"
        in (done.stdout)
    )


async def test_show_says_the_same_in_json(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin, "w1", "w2")
    done = await groups("show", GROUP, "--json")
    found = json.loads(done.stdout)
    assert found["filters"] == [{"filter": "task.email.>", "wildcards": []}]
    assert [one["member"] for one in found["partitions"]] == ["w1", "w1", "w2", "w2"]
    assert [one["read"] for one in found["partitions"]] == [True, True, False, False]
    assert [(one["name"], one["active"], one["pinned"]) for one in found["members"]] == [
        ("w1", True, None),
        ("w2", False, None),
    ]


async def test_show_of_a_group_without_members_says_what_to_do(
    admin: Client, groups: Callable[..., Any]
) -> None:
    await make(admin)
    done = await groups("show", GROUP)
    assert table(done.stdout, "PARTITION")[0] == ["0", "-", "-", "0"]
    assert "it has no members: start a worker" in done.stdout


async def test_show_tells_of_members_that_wait_and_of_consumers_left_behind(
    admin: Client, groups: Callable[..., Any]
) -> None:
    await make(admin, "w0", "w1", "w2", "w3", "w4")
    assert "w4 has no partition, and takes over" in (await groups("show", GROUP)).stdout
    await drop_members(admin, STREAM, GROUP, ["w0"])
    assert "w0 has a consumer, and is no member" in (await groups("show", GROUP)).stdout


async def test_show_of_mapped_partitions(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin)
    await set_mappings(admin, STREAM, GROUP, [Mapping("b", (0, 3)), Mapping("a", (1, 2))])
    rows = table((await groups("show", GROUP)).stdout, "PARTITION")
    assert [row[1] for row in rows] == ["b", "a", "a", "b"]
    assert json.loads((await groups("show", GROUP, "--json")).stdout)["mapped"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("email",), "did you mean 'workers-email'?"),
        (("workers-emial",), "did you mean 'workers-email'?"),
        (("other",), "`dagnats-worker groups list` shows those that there are"),
        ((GROUP, "--stream", "EVENTS"), "there is one on TASK_QUEUES: say --stream TASK_QUEUES"),
        (("a.b",), "group 'a.b' contains '.'"),
    ],
)
async def test_group_that_is_not_there_is_told_in_one_line(
    admin: Client, groups: Callable[..., Any], arguments: tuple[str, ...], says: str
) -> None:
    await make(admin)
    done = await groups("show", *arguments)
    assert done.returncode == 1
    assert says in one_error_line(done)


# -------------------------------------------------------------------------------------- list


async def test_list_has_a_row_for_each_group(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin, "w1", "w2", messages=3)
    await create_group(admin, STREAM, "workers-resize", 2, [PartitionFilter("task.resize.>")])
    done = await groups("list")
    assert table(done.stdout, "GROUP") == [
        [GROUP, STREAM, "2-3", "4", "2", "1", "3", "of", "1024"],
        ["workers-resize", STREAM, "0-1", "2", "0", "0", "0"],
    ]
    as_json = json.loads((await groups("list", "--json")).stdout)
    assert [one["group"] for one in as_json] == [GROUP, "workers-resize"]
    assert (await groups("list", "--stream", "EVENTS")).stdout == ""


async def test_list_without_groups_says_so(groups: Callable[..., Any]) -> None:
    done = await groups("list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no groups; a worker with partitions makes one" in done.stderr
    assert json.loads((await groups("list", "--json")).stdout) == []


async def test_list_tells_of_a_record_that_cannot_be_read_and_shows_the_others(
    admin: Client, groups: Callable[..., Any]
) -> None:
    await make(admin)
    kv = await admin.jetstream().key_value(ELASTIC_BUCKET)
    await kv.put(f"{STREAM}.broken", b"{")
    done = await groups("list")
    assert done.returncode == 1
    assert [row[0] for row in table(done.stdout, "GROUP")] == [GROUP]
    assert "broken on TASK_QUEUES" in done.stderr
    as_json = json.loads((await groups("list", "--json")).stdout)
    assert [one["group"] for one in as_json] == [GROUP, "broken"]
    assert "cannot be read" in as_json[1]["error"]


# ------------------------------------------------------------------ step down, drop, delete


async def test_member_steps_down(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin, "w1", messages=4)
    await pull_one(admin, "w1")
    assert table((await groups("show", GROUP)).stdout, "PARTITION")[0][2] == "pinned"
    done = await groups("step-down", GROUP, "w1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("w1 stepped down")
    assert table((await groups("show", GROUP)).stdout, "PARTITION")[0][2] == "waiting"


async def test_member_without_a_consumer_cannot_step_down(
    admin: Client, groups: Callable[..., Any]
) -> None:
    await make(admin, "w1", "w2")
    done = await groups("step-down", GROUP, "w2")
    assert done.returncode == 1
    assert "member 'w2' has no consumer" in one_error_line(done)


async def test_dead_member_is_dropped(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin, "w1", "w2", "w3")
    done = await groups("drop", GROUP, "w2", "w3", "--yes")
    assert (done.returncode, done.stdout) == (0, f"dropped w2, w3 from {GROUP}\n")
    rows = table((await groups("show", GROUP)).stdout, "PARTITION")
    assert {row[1] for row in rows} == {"w1"}


async def test_member_that_is_misspelt_drops_nobody(
    admin: Client, groups: Callable[..., Any]
) -> None:
    record = await make(admin, "w1", "w2")
    done = await groups("drop", GROUP, "w2", "w9", "--yes")
    assert done.returncode == 1
    assert "has no member 'w9'; its members are w1, w2" in one_error_line(done)
    assert await add_members(admin, STREAM, GROUP, []) == record


async def test_what_cannot_be_undone_is_not_done_without_a_yes(
    admin: Client, groups: Callable[..., Any]
) -> None:
    record = await make(admin, "w1")
    for arguments in (("drop", GROUP, "w1"), ("delete", GROUP)):
        done = await groups(*arguments)
        assert done.returncode == 2
        assert "there is nobody to ask; say --yes" in one_error_line(done)
    assert await add_members(admin, STREAM, GROUP, []) == record


async def test_group_is_deleted(admin: Client, groups: Callable[..., Any]) -> None:
    await make(admin, "w1")
    done = await groups("delete", GROUP, "--yes")
    assert (done.returncode, done.stdout) == (0, f"deleted {GROUP}\n")
    assert await list_groups(admin) == []


async def test_group_with_messages_is_deleted_only_by_force(
    admin: Client, groups: Callable[..., Any]
) -> None:
    await make(admin, "w1", messages=5)
    done = await groups("delete", GROUP, "--yes")
    assert done.returncode == 1
    assert "has 5 messages, which would be lost" in one_error_line(done)
    assert "--force" in done.stderr
    done = await groups("delete", GROUP, "--yes", "--force")
    assert done.stdout == f"deleted {GROUP}, and 5 messages with it\n"


# ---------------------------------------------------------------------------------- a terminal


def typed(url: str, answer: str, *arguments: str) -> tuple[int, str]:
    """Run the command on a terminal, and answer its question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "groups", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color", NATS_URL=url),
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            written += os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if b"[y/N]" in written and answer:
            os.write(ours, f"{answer}\n".encode())
            answer = ""
    os.close(ours)
    return process.wait(BOUND_S), written.decode()


async def test_terminal_is_asked(admin: Client, nats_server: EmbeddedServer) -> None:
    await make(admin, "w1", "w2")
    code, output = await asyncio.to_thread(typed, nats_server.url, "n", "drop", GROUP, "w2")
    assert code == 1
    assert f"drop w2 from group {GROUP} on TASK_QUEUES? [y/N]" in output
    code, output = await asyncio.to_thread(typed, nats_server.url, "y", "drop", GROUP, "w2")
    assert code == 0
    assert f"dropped w2 from {GROUP}" in output


async def test_terminal_shows_the_table_with_colours(
    admin: Client, nats_server: EmbeddedServer
) -> None:
    await make(admin, "w1", "w2")
    screen = await asyncio.to_thread(on_terminal, "groups", "show", GROUP, NATS_URL=nats_server.url)
    assert screen.code == 0
    assert f"\x1b[1m{GROUP} on TASK_QUEUES\x1b[0m" in screen.raw
    assert [row[1] for row in table("\n".join(screen.lines), "PARTITION")] == [
        "w1",
        "w1",
        "w2",
        "w2",
    ]
    plain = await asyncio.to_thread(
        on_terminal, "groups", "show", GROUP, NATS_URL=nats_server.url, NO_COLOR="1"
    )
    assert "\x1b[" not in plain.raw


# ------------------------------------------------------------------------------- without a server


def test_help_names_the_commands_and_imports_no_client() -> None:
    done = run_command("groups", "--help")
    for name in ("list", "show", "step-down", "drop", "delete"):
        assert f"  {name} " in done.stdout
    code = "import sys, dagnats_worker_partitions._command; print('nats' in sys.modules)"
    looked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert looked.stdout.strip() == "False"


def test_server_that_is_not_there_is_told_in_one_line() -> None:
    done = run_command("groups", "list", "--url", "nats://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in one_error_line(done)


def test_numbers_are_told_as_ranges() -> None:
    assert ranges([3, 0, 1, 2, 7, 9, 8]) == "0-3 7-9"
    assert ranges([5]) == "5"
    assert ranges([]) == ""


def info(messages: int | None) -> GroupInfo:
    config = GroupConfig(1, (PartitionFilter("a.*.b.*", (2, 1)),), 2, members=("w1",))
    member = MemberInfo("w1", listed=True, partitions=(0,), active=True)
    partition = PartitionInfo(0, "w1", read=True, messages=2)
    return GroupInfo("S", "g", Record(config, b"", 1), messages, 2, (partition,), (member,))


def test_stream_that_is_full_or_missing_is_told() -> None:
    assert "its stream is full" in "\n".join(group_lines(info(2)))
    assert "its stream is full" not in "\n".join(group_lines(info(1)))
    assert "its stream is missing" in "\n".join(group_lines(info(None)))
    assert "a.*.b.* by * number 2, 1" in "\n".join(group_lines(info(1)))
