"""The programs and the terminal sessions of the documentation do what the pages say.

Method: each program is run as its reader runs it, and all that it prints is compared with the page;
three dots on a page stand for anything. Real: the server, the programs, their processes. Fake:
nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import environment, in_background, run_command
from docs_pages import DOCS, ROOT, Block, all_blocks
from support import connected

from dagnats_worker import EmbeddedServer, provision
from dagnats_worker._durations import parse_duration

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

BOUND_S = 60
SNIPPETS = DOCS / "snippets"
NEED_PLUGINS = "examples/plugins/"
"""Run by `tests/plugins/together/test_docs.py`, where all plugins are installed."""
TUTORIAL = SNIPPETS / "tutorial"
SERVICE = SNIPPETS / "howto" / "run_in_production"
CLOSING_S = 15
"""What a drain may take beyond its limit, as the page says."""
QUICK = {"DAGNATS_WORKER__WORKER__CANCEL_POLL_EVERY": "300ms"}
"""So that nobody waits for handlers that were cancelled in their first second."""

PROGRAMS = [
    block
    for block in all_blocks()
    if "output" in block.attributes and not block.attributes["output"].startswith(NEED_PLUGINS)
]
SESSIONS = [block for block in all_blocks() if "run" in block.attributes]


@pytest.fixture(scope="module")
def url(server_installed: None) -> Iterator[str]:
    """A provisioned server for all of the documentation."""

    async def prepare(server: EmbeddedServer) -> None:
        async with connected(server.url) as client:
            await provision(client.jetstream())

    with EmbeddedServer() as server:
        asyncio.run(prepare(server))
        yield server.url


def run(program: Path, url: str, *, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env=environment(NATS_URL=url, **QUICK),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def matches(expected: str, found: str) -> bool:
    """Whether a text is what a page shows."""
    parts = (re.escape(part) for part in expected.split("..."))
    return re.fullmatch(".*".join(parts), found) is not None


# ------------------------------------------------------------------------- programs


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.where)
def test_program_prints_what_the_page_shows(block: Block, url: str) -> None:
    done = run(ROOT / block.attributes["output"], url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == block.text


def test_every_snippet_is_shown_on_a_page_and_run() -> None:
    marks = ("title", "excerpt")
    shown = {
        block.attributes[mark]
        for block in all_blocks()
        for mark in marks
        if mark in block.attributes
    }
    files = {path.relative_to(ROOT).as_posix() for path in SNIPPETS.rglob("*.*")}
    files = {name for name in files if "__pycache__" not in name}
    assert files == {name for name in shown if name.startswith("docs/")}
    run_here = {block.attributes["output"] for block in PROGRAMS}
    run_elsewhere = {path for path in files if (ROOT / path).parent in (TUTORIAL, SERVICE)}
    assert files == run_here | run_elsewhere


# ------------------------------------------------------------------------- the tutorial


def said(command: str, url: str, folder: Path) -> str:
    """What a command prints on a terminal."""
    program, *arguments = shlex.split(command)
    if program == "dagnats-worker":
        done = run_command(*arguments, cwd=folder, NATS_URL=url)
    else:
        assert (program, len(arguments)) == ("python", 1), command
        done = run(folder / arguments[0], url, folder=folder)
    return done.stdout + done.stderr


def steps(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a session with what it prints."""
    for part in block.text.split("$ ")[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def test_tutorial_does_what_it_says(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "tutorial"
    shutil.copytree(TUTORIAL, folder)
    assert {block.attributes["run"] for block in SESSIONS} == {"docs/snippets/tutorial"}
    with in_background("run", "worker", folder=folder, NATS_URL=url) as worker:
        worker.wait_for("runs; stop it with Ctrl-C")
        for block in SESSIONS:
            for command, expected in steps(block):
                found = said(command, url, folder)
                assert matches(expected, found), f"{block.where}: {command}\n{found}"
        worker.signal(signal.SIGINT)
        assert worker.wait() == 0


def test_excerpts_of_the_tutorial_are_the_whole_worker_in_order() -> None:
    """A reader who appends one after the other has the file at the end."""
    page = DOCS / "tutorial.md"
    parts = [
        block.text for block in all_blocks() if block.page == page and "excerpt" in block.attributes
    ]
    whole = (TUTORIAL / "worker.py").read_text(encoding="utf-8")
    docstring, _, code = whole.partition("\n\n")
    assert docstring.startswith('"""')
    assert "\n\n".join(parts) == code


# ------------------------------------------------------------------------- the service


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The folder of the service, as it is deployed."""
    return Path(shutil.copytree(SERVICE, tmp_path / "service"))


def test_service_is_configured_by_its_file_and_drains(url: str, service: Path) -> None:
    arguments = ("run", "service:worker", "--log-format", "json")
    with in_background(*arguments, folder=service, NATS_URL=url) as worker:
        worker.wait_for("runs; stop it with Ctrl-C")
        done = run_command("submit", "resize", "1500", "--json", NATS_URL=url)
        run_id = json.loads(done.stdout)["run_id"]
        while "step.started" not in run_command("events", run_id, NATS_URL=url).stdout:
            assert worker.process.poll() is None, worker.stderr
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
        assert "waiting up to 50 s for 1 resize" in worker.stderr
    assert "step.completed" in run_command("events", run_id, NATS_URL=url).stdout


def test_service_runs_as_a_program_too(url: str, service: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "service.py"],
        cwd=service,
        env=environment(NATS_URL=url),
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stderr is not None
        assert any("runs; stop it with Ctrl-C" in line for line in program.stderr)
        program.send_signal(signal.SIGTERM)
        assert program.wait(BOUND_S) == 0


def test_grace_period_is_longer_than_the_drain() -> None:
    settings = tomllib.loads((SERVICE / "dagnats-worker.toml").read_text(encoding="utf-8"))
    drain = parse_duration(settings["worker"]["drain_timeout"]).total_seconds()
    deployment = (SERVICE / "deployment.yaml").read_text(encoding="utf-8")
    grace = re.search(r"terminationGracePeriodSeconds: (\d+)", deployment)
    assert grace is not None
    assert int(grace[1]) >= drain + CLOSING_S
