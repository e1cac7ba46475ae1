"""``run --reload``: the program is changed while it runs.

Method: the command in a process of its own, whose module is written anew. Real: the command, the
files and who watches them, the server. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from supervised_support import BOUND_S, Running, is_alive, running, write_app
from support import eventually, unique

from dagnats_worker import Client
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._serve import EXIT_BROKEN

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(os.name != "posix", reason="needs Linux or macOS"),
]

APP = """
import asyncio
from dagnats_worker import Worker

worker = Worker(worker_id="ada")

@worker.task("{type}")
async def answer(seconds: float) -> str:
    print("answer runs", flush=True)
    await asyncio.sleep(seconds)
    return "{text}"
"""


@pytest.fixture(autouse=True)
def needs_watchfiles() -> None:
    pytest.importorskip("watchfiles")


@pytest.fixture
async def client(shared_server: EmbeddedServer) -> AsyncIterator[Client]:
    async with Client(shared_server.url) as opened:
        yield opened


def write(folder: Path, task_type: str, text: str) -> None:
    (folder / "app.py").write_text(APP.format(type=task_type, text=text))


async def asked(client: Client, task_type: str, seconds: float = 0.0) -> Any:
    async with asyncio.timeout(BOUND_S):
        return await (await client.submit(task_type, seconds)).result()


def starts(run: Running) -> int:
    return len(re.findall(r"worker \S+ runs", run.log))


async def test_change_starts_the_new_program_after_a_drain_of_the_old(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    kind = unique("reload")
    write(tmp_path, kind, "old")
    with running(tmp_path, shared_server.url, "--reload", task_type=kind) as run:
        await run.wait_for(r"worker ada runs")
        slow = asyncio.create_task(asked(client, kind, 2.0))
        await run.wait_for("answer runs")
        write(tmp_path, kind, "new")
        await run.wait_for(r"app\.py has changed")
        assert await slow == "old", "it ended in the old program"
        await run.wait_ready(2)
        assert await asked(client, kind) == "new"
        run.signal()
        assert await run.exit_code() == 0, run.log
        assert run.log.count("  serves") == 1, "what runs is said once"
        assert not any(is_alive(pid) for pid in run.pids())


async def test_syntax_error_is_shown_and_the_next_change_is_awaited(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    kind = unique("reload")
    write(tmp_path, kind, "old")
    with running(tmp_path, shared_server.url, "--reload", task_type=kind) as run:
        await run.wait_ready()
        (tmp_path / "app.py").write_text("def broken(:\n")
        await run.wait_for(r"error: cannot import 'app': SyntaxError: .*app\.py, line 1")
        await run.wait_for("waiting for a change")
        assert run.background.process.poll() is None
        write(tmp_path, kind, "new")
        await run.wait_ready(2)
        assert await asked(client, kind) == "new"


async def test_error_at_the_first_start_waits_for_a_change_too(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("import no_such_module\n")
    with running(tmp_path, shared_server.url, "--reload", task_type="none") as run:
        await run.wait_for("waiting for a change")
        run.signal()
        assert await run.exit_code() == 1


async def test_change_within_the_same_second_counts(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes compiled code for current whose file has the same size and the same second."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    kind = unique("reload")
    write(tmp_path, kind, "old")
    before = (tmp_path / "app.py").stat()
    with running(tmp_path, shared_server.url, "--reload", task_type=kind) as run:
        await run.wait_ready()
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        write(folder, kind, "new")
        os.utime(folder / "app.py", ns=(before.st_atime_ns, before.st_mtime_ns))
        (folder / "app.py").replace(tmp_path / "app.py")
        await run.wait_for(r"app\.py has changed")
        await run.wait_ready(2)
        assert await asked(client, kind) == "new"


async def test_change_of_the_configuration_counts_and_of_other_files_does_not(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    write_app(tmp_path)
    with running(
        tmp_path, shared_server.url, "--reload", "--health", "127.0.0.1:0", task_type="none"
    ) as run:
        await run.wait_ready()
        (tmp_path / "notes.txt").write_text("nothing")
        (tmp_path / "dagnats-worker.toml").write_text("[worker]\nmax_deliveries = 7\n")
        await run.wait_for(r"dagnats-worker\.toml has changed; starting again")
        await eventually(lambda: starts(run) == 2, BOUND_S)
        assert (await run.get("/livez")).status == 200
        assert "notes.txt" not in run.log


async def test_end_after_a_killed_process_has_an_exit_code_of_ours(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    more = "os.kill(os.getpid(), signal.SIGKILL)"
    with running(tmp_path, shared_server.url, "--reload", more=more) as run:
        await run.wait_for("was ended by SIGKILL; waiting for a change")
        run.signal()
        assert await run.exit_code() == EXIT_BROKEN
