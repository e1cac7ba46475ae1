"""Every plugin of this project in one environment: they get along, and nothing is lost.

Method: the commands and a worker with all that is installed. Real: the server, the plugins, the
processes. Fake: nothing.
"""

from __future__ import annotations

import json
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cli_support import in_background, run_command
from support import unique

from dagnats_worker import Client, EmbeddedServer, TaskContext, Worker

pytestmark = [pytest.mark.server]

ROOT = Path(__file__).parents[3]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def test_all_plugins_are_here() -> None:
    assert sorted(entry_points(group="dagnats_worker.plugins.v1").names) == PLUGINS


def test_doctor_finds_nothing_wrong(nats_server: EmbeddedServer) -> None:
    listed = json.loads(run_command("plugins", "list", "--json").stdout)
    assert {one["name"]: one["state"] for one in listed} == dict.fromkeys(PLUGINS, "active")
    done = run_command("doctor", "--json", "--url", nats_server.url)
    wrong = [one for one in json.loads(done.stdout)["findings"] if one["level"] != "ok"]
    assert wrong == []


def test_every_command_of_a_plugin_has_a_help() -> None:
    for name in entry_points(group="dagnats_worker.commands.v1").names:
        done = run_command(name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: dagnats-worker {name}")


def test_demo_runs_with_all_of_them() -> None:
    done = run_command("demo", "--json")
    assert done.returncode == 0, done.stderr
    kinds = {json.loads(line)["event"] for line in done.stdout.splitlines()}
    assert {"demo.started", "step.completed", "step.failed"} <= kinds


async def test_worker_with_all_of_them_uses_two_at_once(nats_server: EmbeddedServer) -> None:
    task_type = unique("all")
    worker = Worker(nats_server.url)

    @worker.task(task_type)
    async def remember(ctx: TaskContext, name: str) -> str:
        await ctx.checkpoint({"name": name})
        await ctx.send_signal(ctx.run_id, "hello", name)
        heard = await ctx.wait_for_signal("hello", timedelta(seconds=10))
        return f"{heard.decode()} {(await ctx.load_checkpoint() or b'').decode()}"

    async with worker, Client(nats_server.url) as client:
        run = await client.submit(task_type, "Ada")
        output = await run.result(timeout=timedelta(seconds=30))
        listed = run_command("workers", "--json", "--url", nats_server.url).stdout
    assert output == '"Ada" {"name":"Ada"}'
    assert worker.worker_id in listed


def test_process_with_all_of_them_starts_and_drains(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        "from dagnats_worker import Worker\n"
        "worker = Worker()\n"
        "worker.handle('echo', lambda text: text)\n"
    )
    url = nats_server.url
    with in_background("run", "app:worker", "--url", url, folder=tmp_path) as worker:
        worker.wait_for("serves")
        done = run_command("submit", "echo", '"hi"', "--wait", "--url", url)
        assert done.stdout == '"hi"\n'
        worker.signal()
        assert worker.wait() == 0
