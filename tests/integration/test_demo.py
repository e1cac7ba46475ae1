"""The demo, from its first line to its exit code.

Method: the real command, into a pipe and on a pseudo-terminal; in one test its expectations are
changed beforehand. Real: the command, its server, its worker. Fake: the terminal.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

import pytest
from cli_support import COMMAND, environment, on_terminal, one_error_line, run_command
from nats.js import JetStreamContext

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker.cli._demo_tasks import KINDS

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

TASKS = sum(len(kind.inputs) for kind in KINDS)
DEAD = sum(len(kind.inputs) for kind in KINDS if kind.ends == "failed")
PROMISED_S = 15


def test_demo_in_a_pipe_is_plain_lines_and_a_summary() -> None:
    began = time.monotonic()
    done = run_command("demo")
    assert time.monotonic() - began < PROMISED_S
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert f"✔ {TASKS} tasks in " in done.stdout
    assert f"{TASKS - DEAD} completed, {DEAD} failed for good, as they should" in done.stdout
    assert "attempt 1 failed" in done.stdout
    assert 'completed  greet-1      try 1  {"text":"Hello, Ada!"}' in done.stdout
    letters = done.stdout.partition("Dead letters")[2]
    assert "the card 4000-0002 was declined; no retry can help" in letters
    assert "upload-1  5 tries  no room for backup.tar; all its attempts are used up" in letters


def test_demo_on_a_terminal_is_live_and_fits() -> None:
    screen = on_terminal("demo", columns=80, rows=24)
    assert screen.code == 0
    assert "\x1b[?25l" in screen.raw, "the cursor is hidden while it draws"
    assert screen.raw.rstrip().count("\x1b[?25h") >= 1, "and comes back"
    assert "running" in screen.raw
    assert "retry in" in screen.raw
    assert max(map(len, screen.lines)) <= 80
    assert "as they should" in " ".join(screen.lines[-40:])


def test_demo_that_goes_wrong_says_so_and_is_code_1() -> None:
    code = (
        "import sys\nfrom dagnats_worker.cli import _demo_tasks as tasks, main\n"
        "object.__setattr__(tasks.KINDS[5], 'ends', 'completed')\n"
        "sys.argv[1:] = ['demo']\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PROMISED_S * 2,
        check=False,
    )
    assert done.returncode == 1
    assert "not as expected" in done.stdout
    assert "charge-1 failed, and should not have" in done.stdout


def test_demo_whose_reader_goes_away_is_quiet() -> None:
    with subprocess.Popen(
        [*COMMAND, "demo", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"demo.started" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PROMISED_S) == 1


async def test_demo_as_json_on_another_server_leaves_no_consumer_behind(
    shared_server: EmbeddedServer, js: JetStreamContext
) -> None:
    before = {consumer.name for consumer in await js.consumers_info("TASK_QUEUES")}
    done = run_command("demo", "--json", "--url", shared_server.url)
    assert {consumer.name for consumer in await js.consumers_info("TASK_QUEUES")} == before
    assert (done.returncode, done.stderr) == (0, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    first, last = events[0], events[-1]
    assert (first["event"], first["tasks"]) == ("demo.started", TASKS)
    assert last["event"] == "demo.finished"
    assert last["ok"] is True
    assert (last["completed"], last["failed"], last["dead_letters"]) == (TASKS - DEAD, DEAD, DEAD)
    counts = Counter(event["event"] for event in events)
    assert counts["task.submitted"] == TASKS
    assert (counts["step.completed"], counts["step.failed"]) == (TASKS - DEAD, DEAD)
    assert counts["task.chunk"] > 0
    for kind in KINDS:
        starts = [
            event["attempt"]
            for event in events
            if event["event"] == "step.started" and event["task_type"] == kind.name
        ]
        assert max(starts) == kind.attempts, kind.name


def test_demo_on_a_server_without_streams_names_setup(empty_server: EmbeddedServer) -> None:
    done = run_command("demo", "--url", empty_server.url)
    assert done.returncode == 1
    assert "`dagnats-worker setup`" in one_error_line(done)
