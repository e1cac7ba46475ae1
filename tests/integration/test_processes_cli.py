"""``run --processes N``: processes that are ended, that crash, hang, grow and are replaced.

Method: the command in a process of its own, with tasks of a real client; processes get real
signals. Real: the command, its processes, the server, the signals. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import one_error_line, run_command
from supervised_support import BOUND_S, Running, is_alive, running, write_app
from support import eventually

from dagnats_worker import Client, Run
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._serve import EXIT_BROKEN, EXIT_FORCED, EXIT_GAVE_UP

pytestmark = [pytest.mark.server, pytest.mark.skipif(os.name != "posix", reason="needs fork-exec")]

QUICK = ("-o", "worker.restart_wait=20ms", "-o", "worker.crashes_max=3")
CRASHES_WHERE_TOLD = """
if Path("crash").exists():
    print("crashes", flush=True)
    os._exit(9)
"""


@pytest.fixture
async def client(shared_server: EmbeddedServer) -> AsyncIterator[Client]:
    async with Client(shared_server.url) as opened:
        yield opened


async def results(runs: list[Run]) -> list[Any]:
    async with asyncio.timeout(BOUND_S):
        return list(await asyncio.gather(*(run.result() for run in runs)))


async def submitted(client: Client, task_type: str, inputs: list[Any]) -> list[Run]:
    return [await client.submit(task_type, value) for value in inputs]


async def seen_workers(client: Client, run: Running, wanted: int) -> dict[str, int]:
    """The pids of the workers by their ids, once so many have answered."""
    seen: dict[str, int] = {}
    async with asyncio.timeout(BOUND_S):
        while len(seen) < wanted:
            for found in await results(await submitted(client, f"{run.task_type}-who", [None] * 8)):
                seen[found["worker"]] = found["pid"]
    return seen


# ------------------------------------------------------------------------- ids and options


async def test_every_process_takes_tasks_with_an_id_of_its_own(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    name = f"fleet{os.getpid()}"
    options = ("--processes", "3", "--max-tasks", "2", "--log-format", "json")
    with running(tmp_path, shared_server.url, *options, arguments=f"worker_id={name!r}") as run:
        await run.wait_ready(3)
        workers = await seen_workers(client, run, 3)
        assert set(workers) == {f"{name}-{number}" for number in range(3)}
        assert set(workers.values()) == set(run.pids())
        (found,) = await results(await submitted(client, f"{run.task_type}-who", [None]))
        assert found["max_tasks"] == 2
        run.signal()
        assert await run.exit_code() == 0, run.log
        assert '"process": 2' in run.log
        assert not any(is_alive(pid) for pid in run.pids())


# ------------------------------------------------------------------------- the end


async def test_drain_loses_nothing_that_runs(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, "--processes", "2") as run:
        await run.wait_ready(2)
        runs = await submitted(client, f"{run.task_type}-slow", [2.0] * 8)
        await run.until(lambda: run.background.stdout.count("slow runs") == 8)
        run.signal()
        assert await run.exit_code() == 0, run.log
        assert len(await results(runs)) == 8
        assert run.background.stdout.count("slow runs") == 8, "none was run again"


async def test_signal_to_the_whole_group_is_one_wish_to_drain(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, "--processes", "2") as run:
        await run.wait_ready(2)
        runs = await submitted(client, f"{run.task_type}-slow", [2.0] * 2)
        await run.until(lambda: run.background.stdout.count("slow runs") == 2)
        for pid in run.pids():
            os.kill(pid, signal.SIGTERM)
        run.signal()
        assert await run.exit_code() == 0, run.log
        assert len(await results(runs)) == 2
        assert run.background.stdout.count("slow runs") == 2


async def test_handlers_that_outlive_the_drain_give_code_3(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    options = ("--processes", "2", "--drain-timeout", "200ms")
    with running(tmp_path, shared_server.url, *options) as run:
        await run.wait_ready(2)
        await submitted(client, f"{run.task_type}-slow", [60.0])
        await run.wait_for("slow runs")
        run.signal()
        assert await run.exit_code() == EXIT_GAVE_UP


async def test_second_signal_forces_the_end(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, "--processes", "2") as run:
        await run.wait_ready(2)
        await submitted(client, f"{run.task_type}-slow", [60.0])
        await run.wait_for("slow runs")
        run.signal(signal.SIGINT)
        await run.wait_for("a second signal forces")
        run.signal(signal.SIGINT)
        assert await run.exit_code() == EXIT_FORCED


async def test_process_that_still_imports_its_module_ends_at_once(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    more = 'print("imports", flush=True)\ntime.sleep(600)'
    with running(tmp_path, shared_server.url, "--processes", "2", more=more) as run:
        await run.wait_for("imports")
        run.signal()
        assert await run.exit_code() == 0, run.log


async def test_processes_drain_when_their_supervisor_is_killed(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, "--processes", "2") as run:
        await run.wait_ready(2)
        runs = await submitted(client, f"{run.task_type}-slow", [1.0] * 4)
        await run.until(lambda: run.background.stdout.count("slow runs") == 4)
        run.signal(signal.SIGKILL)
        assert await run.exit_code() == -signal.SIGKILL
        assert len(await results(runs)) == 4
        await eventually(lambda: not any(is_alive(pid) for pid in run.pids()), BOUND_S)
        assert run.log.count("the supervisor of this process has ended") == 2
        assert run.log.count("stopped with code 0") == 2


# ------------------------------------------------------------------------- crashes


async def test_killed_process_is_started_again_and_loses_no_task(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, "--processes", "2", *QUICK) as run:
        await run.wait_ready(2)
        runs = await submitted(client, f"{run.task_type}-who", [None] * 300)
        os.kill(run.pids()[1], signal.SIGKILL)
        await run.wait_for(r"process 1 .*was ended by SIGKILL; the next one starts in")
        await run.wait_ready(3)
        assert len(await results(runs)) == 300
        run.signal()
        assert await run.exit_code() == 0, run.log


async def test_crash_loop_ends_the_supervisor_loudly(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    with running(
        tmp_path, shared_server.url, "--processes", "2", *QUICK, more=CRASHES_WHERE_TOLD
    ) as run:
        await run.wait_ready(2)
        (tmp_path / "crash").touch()
        os.kill(run.pids()[1], signal.SIGKILL)
        assert await run.exit_code() == EXIT_BROKEN
        assert run.background.stdout.count("crashes\n") == 2
        assert re.search(r"critical process 1 .* 3 times in a row within 1 m.*giving up", run.log)
        assert "[0] stopped with code 0" in run.log, "the other one has drained"


async def test_module_that_cannot_be_imported_is_told_once(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("import no_such_module\n")
    with running(tmp_path, shared_server.url, "--processes", "4", task_type="none") as run:
        assert await run.exit_code() == EXIT_BROKEN
        assert run.log.count("error: cannot import 'app'") == 1
        assert len(run.pids()) == 1
        assert "not starting the others" in run.log


# ------------------------------------------------------------------------- replacing


async def test_process_is_replaced_after_so_many_tasks_and_none_is_lost(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    options = ("--processes", "2", "--max-tasks-per-child", "150")
    with running(tmp_path, shared_server.url, *options) as run:
        await run.wait_ready(2)
        done: list[Any] = []
        async with asyncio.timeout(BOUND_S):
            while run.log.count("and is replaced") < 3:
                batch = await submitted(client, f"{run.task_type}-who", [None] * 100)
                done += await results(batch)
        assert len({one["pid"] for one in done}) >= 3
        run.signal()
        assert await run.exit_code() == 0, run.log
        assert "the next one starts in" not in run.log, "no crash"
        assert " failed" in run.log
        assert not re.search(r"[1-9]\d* (failed|to be tried again)", run.log)


async def test_process_is_replaced_for_its_memory_when_its_handlers_have_ended(
    shared_server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    options = ("--processes", "1", "--max-memory-per-child", "250MB")
    with running(tmp_path, shared_server.url, *options) as run:
        await run.wait_ready()
        slow = await submitted(client, f"{run.task_type}-slow", [2.0])
        await run.wait_for("slow runs")
        (grown,) = await results(await submitted(client, f"{run.task_type}-grow", [300]))
        await run.wait_for(r"process 0 .* has \d+ MB of memory, and is replaced")
        assert await results(slow) == [grown]
        await run.wait_ready(2)
        assert await seen_workers(client, run, 1) != grown
        assert run.background.stdout.count("slow runs") == 1
        run.signal()
        assert await run.exit_code() == 0, run.log


# ------------------------------------------------------------------------- embedded, usage


async def test_supervisor_owns_the_embedded_server(server_installed: None, tmp_path: Path) -> None:
    with running(tmp_path, None, "--embedded", "--processes", "2") as run:
        await run.wait_ready(2)
        found = await run.wait_for(r"nats-server \S+ at (nats://\S+), embedded")
        async with Client(found[1]) as client:
            assert len(await seen_workers(client, run, 2)) == 2
        run.signal()
        assert await run.exit_code() == 0, run.log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0"], "0 is not in the range"),
        (["--max-tasks-per-child", "9"], "--max-tasks-per-child belongs to --processes"),
        (["--max-memory-per-child", "9MB"], "--max-memory-per-child belongs to --processes"),
        (["--processes", "2", "--max-memory-per-child", "9"], "'9' is no size; write a number"),
        (["--processes", "2", "--max-memory-per-child", "0MB"], "nothing at all"),
        (["--processes", "2", "--reload"], "--reload runs one process"),
        (["--health", "8080"], "health is HOST:PORT, such as 127.0.0.1:8080"),
        (["--health", ":8080"], "health is HOST:PORT"),
        (["--health", "::1:8080"], "health is HOST:PORT"),
        (["--health", "localhost:99999"], "health is HOST:PORT"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(options: list[str], message: str, tmp_path: Path) -> None:
    write_app(tmp_path)
    done = run_command("run", "app", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in one_error_line(done)
