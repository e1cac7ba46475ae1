"""``dagnats-worker workers`` and ``workers skew``, for people and for programs.

Method: the command as its user runs it, in a pipe or on a terminal of its own; workers are written
to the bucket by the test. Real: the command, the terminal, the server. Fake: the workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import (
    ANSI,
    BOUND_S,
    COMMAND,
    environment,
    in_background,
    on_terminal,
    one_error_line,
    run_command,
)
from support import connected, free_port

from dagnats_worker import EmbeddedServer
from dagnats_worker_directory import Directory, Report, WorkerRegistration
from dagnats_worker_directory._fleet import age_text

STARTED = "2026-01-02T03:04:05Z"


def python_worker(number: int, core: str = "0.1.0", **report: Any) -> WorkerRegistration:
    said = Report(
        state="running",
        slots_in_use=3,
        slots=64,
        core=core,
        python="3.11.7",
        plugins={"directory": "0.1.0"},
        started_at=STARTED,
    )
    said = Report(**{name: getattr(said, name) for name in Report.__dataclass_fields__} | report)
    return WorkerRegistration(
        f"worker-{number:03d}",
        ("greet", "resize"),
        max_tasks=64,
        pid=7,
        hostname="box-1",
        version="2026.8",
        metadata=said.to_metadata(),
    )


GO = WorkerRegistration(
    "worker-go", ("mail.send",), language="go", max_tasks=2, pid=9, hostname="box-2", version="dev"
)


async def put(url: str, *workers: WorkerRegistration) -> None:
    async with connected(url) as nc:
        directory = Directory.open(nc.jetstream())
        await asyncio.gather(*map(directory.register, workers))


async def put_raw(url: str, key: str, value: bytes) -> None:
    async with connected(url) as nc:
        await nc.jetstream().publish(f"$KV.workers.{key}", value)


async def workers(server: EmbeddedServer, *arguments: str, **more: str) -> Any:
    return await asyncio.to_thread(run_command, "workers", *arguments, "--url", server.url, **more)


async def on_screen(server: EmbeddedServer, *arguments: str, **more: Any) -> Any:
    return await asyncio.to_thread(on_terminal, "workers", *arguments, "--url", server.url, **more)


# ------------------------------------------------------------------------- the list


async def test_empty_fleet_says_what_to_do(nats_server: EmbeddedServer) -> None:
    done = await workers(nats_server)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no worker is listed\n")
    assert "dagnats-worker run MODULE:WORKER" in done.stdout
    assert (await workers(nats_server, "--json")).stdout == "[]\n"


async def test_table_in_a_pipe_has_every_column_and_cuts_nothing(
    nats_server: EmbeddedServer,
) -> None:
    long = WorkerRegistration("worker-long", tuple(f"type-{n}" for n in range(40)))
    await put(nats_server.url, GO, python_worker(1, groups=("gpu",)), long)
    done = await workers(nats_server)
    assert (done.returncode, done.stderr) == (0, "")
    head, first, go, last = done.stdout.splitlines()
    assert head.split() == [
        *("WORKER", "STATE", "LOAD", "TYPES", "GROUPS"),
        *("LANGUAGE", "VERSION", "UP", "SEEN", "HOST"),
    ]
    assert re.fullmatch(
        r"worker-001 +● running +3/64 +greet, resize +gpu +python +2026\.8 "
        r"+\d+d( \d+h)? +\d+s +box-1",
        first,
    )
    assert re.fullmatch(r"worker-go +- +-/2 +mail\.send +go +dev +\d+s +box-2", go)
    assert "type-39" in last
    assert "\x1b" not in done.stdout


async def test_json_has_everything_that_a_script_may_want(nats_server: EmbeddedServer) -> None:
    await put(nats_server.url, GO, python_worker(1, groups=("gpu",), more={"zone": "eu"}))
    ours, go = json.loads((await workers(nats_server, "--json")).stdout)
    assert ours.pop("last_seen").endswith("Z")
    assert ours == {
        "worker_id": "worker-001",
        "language": "python",
        "state": "running",
        "task_types": ["greet", "resize"],
        "groups": ["gpu"],
        "slots_in_use": 3,
        "max_tasks": 64,
        "loop_blocked_s": 0,
        "version": "2026.8",
        "core": "0.1.0",
        "python": "3.11.7",
        "plugins": {"directory": "0.1.0"},
        "hostname": "box-1",
        "pid": 7,
        "transport": "nats",
        "started_at": STARTED,
        "metadata": {"zone": "eu"},
    }
    assert (go["language"], go["state"], go["slots_in_use"], go["core"]) == ("go", None, None, None)
    assert list(go) == [*list(ours)[:-1], "last_seen", "metadata"]


async def test_entry_that_cannot_be_read_is_told_beside_the_list(
    nats_server: EmbeddedServer,
) -> None:
    await put(nats_server.url, python_worker(1))
    await put_raw(nats_server.url, "broken", b"\x1b[2J{")
    done = await workers(nats_server, "--json")
    assert [one["worker_id"] for one in json.loads(done.stdout)] == ["worker-001"]
    assert done.returncode == 0
    assert re.fullmatch(r"warning: entry 'broken' is left out: [^\n\x1b]+\n", done.stderr)


@pytest.mark.parametrize("columns", [200, 100, 80, 60, 40, 20])
async def test_table_fits_the_terminal(nats_server: EmbeddedServer, columns: int) -> None:
    await put(nats_server.url, GO, python_worker(1), python_worker(2, loop_blocked_s=70))
    screen = await on_screen(nats_server, columns=columns)
    lines = [line for line in screen.lines if line]
    assert screen.code == 0
    assert len(lines) == 5
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("WORKER")
    assert ("HOST" in lines[0]) == (columns >= 100)
    assert ("LOAD" in lines[0]) == (columns >= 60)
    assert lines[-1].startswith("3 workers, 6 of 128"[: columns - 1])
    if columns >= 40:
        assert "▲ blocked 1m 10s" in lines[2]
    if columns >= 60:
        assert "█░░░░░ 3/64" in lines[1]


async def test_no_color_and_plain_terminals_are_respected(nats_server: EmbeddedServer) -> None:
    await put(nats_server.url, python_worker(1))
    colored = await on_screen(nats_server)
    assert "\x1b[32m" in colored.raw
    bare = await on_screen(nats_server, NO_COLOR="1")
    assert not re.search(r"\x1b\[3\dm", bare.raw)
    ascii_only = await workers(nats_server, PYTHONIOENCODING="ascii")
    assert ascii_only.stdout.isascii()
    assert "* running" in ascii_only.stdout


async def test_text_of_others_cannot_steer_the_terminal(nats_server: EmbeddedServer) -> None:
    evil = WorkerRegistration(
        "worker-1", ("\x1b[2Jgone", "a\nb"), hostname="\x1b]0;title\x07", version="\u202e1"
    )
    await put(nats_server.url, evil)
    for arguments in ((), ("skew",)):
        screen = await on_screen(nats_server, *arguments, columns=200)
        text = ANSI.sub("", screen.raw)
        assert "\x1b[2J" not in screen.raw
        assert not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\u202e]", text), repr(text)


async def test_two_hundred_workers_are_listed(nats_server: EmbeddedServer) -> None:
    await put(nats_server.url, *map(python_worker, range(200)))
    done = await workers(nats_server)
    assert len(done.stdout.splitlines()) == 201
    assert len(json.loads((await workers(nats_server, "--json")).stdout)) == 200


# ------------------------------------------------------------------------- errors


async def test_missing_bucket_is_one_line_that_names_the_command(
    empty_server: EmbeddedServer,
) -> None:
    for arguments in ((), ("--json",), ("--watch",), ("skew",)):
        done = await workers(empty_server, *arguments)
        assert done.returncode == 1
        assert "`dagnats-worker setup`" in one_error_line(done)


@pytest.mark.parametrize("arguments", [[], ["--watch"], ["skew", "--json"]])
def test_missing_server_is_one_line(arguments: list[str]) -> None:
    done = run_command("workers", *arguments, "--url", f"nats://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stdout == ""
    one_error_line(done)


def test_options_of_the_list_are_not_those_of_skew() -> None:
    done = run_command("workers", "--json", "skew")
    assert done.returncode == 2
    assert "options go behind 'skew'" in one_error_line(done)


def test_help_imports_neither_nats_nor_rich() -> None:
    look = (
        "import sys, dagnats_worker_directory._command; print({'nats', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "set()\n"
    assert "--watch" in run_command("workers", "--help").stdout


# ------------------------------------------------------------------------- following


async def test_watch_in_a_pipe_is_one_line_for_each_change(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    await put(nats_server.url, python_worker(1))
    with in_background("workers", "--watch", "--url", nats_server.url, folder=tmp_path) as watch:
        await asyncio.to_thread(watch.wait_for, r"worker-001  joined   greet, resize\n")
        await put(nats_server.url, GO)
        await asyncio.to_thread(watch.wait_for, r"worker-go  joined   mail.send\n")
        await put(nats_server.url, python_worker(1))
        await put(nats_server.url, python_worker(1, state="draining"))
        await asyncio.to_thread(watch.wait_for, r"worker-001  updated  ◐ draining  3/64\n")
        async with connected(nats_server.url) as nc:
            await Directory.open(nc.jetstream()).deregister("worker-001")
        await asyncio.to_thread(watch.wait_for, r"worker-001  left\n")
        watch.signal(signal.SIGINT)
        assert await asyncio.to_thread(watch.wait) == 130
    assert len(watch.stdout.splitlines()) == 4
    assert watch.stderr == ""


async def test_watch_as_json_is_one_object_for_each_change(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    await put(nats_server.url, GO)
    arguments = ("workers", "--watch", "--json", "--url", nats_server.url)
    with in_background(*arguments, folder=tmp_path) as watch:
        await asyncio.to_thread(watch.wait_for, "joined")
        async with connected(nats_server.url) as nc:
            await Directory.open(nc.jetstream()).deregister("worker-go")
        await asyncio.to_thread(watch.wait_for, "left")
        watch.signal(signal.SIGTERM)
        assert await asyncio.to_thread(watch.wait) == 143
    joined, left = map(json.loads, watch.stdout.splitlines())
    assert (joined["change"], joined["worker"]["worker_id"]) == ("joined", "worker-go")
    assert (left["change"], left["expired"]) == ("left", False)
    assert left["worker"] == joined["worker"]


async def test_watch_ends_when_nobody_reads_it_any_more(nats_server: EmbeddedServer) -> None:
    await put(nats_server.url, GO)
    command = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*COMMAND, "workers", "--watch", "--json", "--url", nats_server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert command.stdout is not None
    assert command.stderr is not None
    try:
        assert await asyncio.to_thread(command.stdout.readline)
        command.stdout.close()
        await put(nats_server.url, python_worker(1))
        assert await asyncio.to_thread(command.wait, BOUND_S) == 1
        assert command.stderr.read() == b""
    finally:
        command.kill()
        command.wait()
        command.stderr.close()


async def test_watch_on_a_terminal_is_drawn_anew_and_ends_with_control_c(
    nats_server: EmbeddedServer,
) -> None:
    await put(nats_server.url, *map(python_worker, range(40)))
    ours, theirs = pty.openpty()
    command = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*COMMAND, "workers", "--watch", "--url", nats_server.url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color", LC_ALL="C.UTF-8", COLUMNS="80", LINES="12"),
        start_new_session=True,
    )
    os.close(theirs)
    written = b""

    def read_until(pattern: bytes) -> None:
        nonlocal written
        while not re.search(pattern, written):
            written += os.read(ours, 65536)

    try:
        async with asyncio.timeout(BOUND_S):
            await asyncio.to_thread(read_until, rb"and 33 more")
            async with connected(nats_server.url) as nc:
                await Directory.open(nc.jetstream()).deregister("worker-000")
            await asyncio.to_thread(read_until, rb"and 32 more")
        command.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(command.wait, BOUND_S) == 130
    finally:
        command.kill()
        command.wait()
        os.close(ours)
    assert b"40 workers, 120 of 2560 slots in use" in written
    assert b"Traceback" not in written


# ------------------------------------------------------------------------- versions


async def test_skew_tells_who_runs_what_and_fails_only_when_asked_to(
    nats_server: EmbeddedServer,
) -> None:
    old = python_worker(3, core="0.0.9", plugins={"directory": "0.1.0", "signals": "0.2.0"})
    await put(nats_server.url, GO, python_worker(1), python_worker(2), old)
    done = await workers(nats_server, "skew")
    assert done.returncode == 0
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    assert rows == [
        ["COMPONENT", "VERSION", "WORKERS", "WHO"],
        ["dagnats-worker", "0.1.0", "2", "worker-001, worker-002"],
        ["0.0.9", "1", "worker-003"],
        ["python", "3.11.7", "3", "worker-001, worker-002, worker-003"],
        ["(program)", "2026.8", "3", "worker-001, worker-002, worker-003"],
        ["directory", "0.1.0", "3", "worker-001, worker-002, worker-003"],
        ["signals", "0.2.0", "1", "worker-003"],
        ["go worker", "dev", "1", "worker-go"],
    ]
    failed = await workers(nats_server, "skew", "--fail", "--json")
    assert failed.returncode == 1
    found = json.loads(failed.stdout)
    assert found["skew"] is True
    assert found["components"][0] == {
        "component": "dagnats-worker",
        "versions": [
            {"version": "0.1.0", "workers": ["worker-001", "worker-002"], "odd": False},
            {"version": "0.0.9", "workers": ["worker-003"], "odd": True},
        ],
    }
    screen = await on_screen(nats_server, "skew")
    assert "\x1b[33m0.0.9" in screen.raw
    assert "\x1b[32m0.1.0" in screen.raw


async def test_fleet_of_one_version_is_not_skewed(nats_server: EmbeddedServer) -> None:
    await put(nats_server.url, GO, python_worker(1))
    done = await workers(nats_server, "skew", "--fail")
    assert (done.returncode, done.stderr) == (0, "")
    empty = await workers(nats_server, "skew", "--json")
    assert json.loads(empty.stdout)["skew"] is False


async def test_server_can_be_named_before_skew_too(nats_server: EmbeddedServer) -> None:
    await put(nats_server.url, GO)
    done = await asyncio.to_thread(
        run_command, "workers", "--url", nats_server.url, "skew", NATS_URL="nats://127.0.0.1:1"
    )
    assert "go worker" in done.stdout


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        *((-5, "0s"), (0.4, "0s"), (42, "42s"), (60, "1m"), (190, "3m 10s"), (3600, "1h")),
        *((7500, "2h 5m"), (86_400, "1d"), (1_051_200, "12d 4h")),
    ],
)
def test_age_is_told_in_two_units(age_s: float, text: str) -> None:
    assert age_text(age_s) == text
