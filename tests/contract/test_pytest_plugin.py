"""The fixtures for the tests of others, and that nobody gets them without asking.

Method: pytest in a process of its own runs a small project that uses them. Real: pytest, the real
server of one of the fixtures. Fake: the in-memory server, which is what the others give.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_support import environment

ROOT = Path(__file__).parents[2]
BOUND_S = 120

PROJECT = """
from __future__ import annotations

import asyncio

from dagnats_worker import Client, EmbeddedServer, Worker
from dagnats_worker.testing import MemoryServer, MemoryTransport


def shout(text: str) -> str:
    return text.upper()


async def run(worker, client):
    worker.handle("shout", shout)
    async with worker, client:
        return await (await client.submit("shout", "hello")).result()


def test_real_server(nats_server: EmbeddedServer) -> None:
    url = nats_server.url
    assert asyncio.run(run(Worker(url, plugins=[]), Client(url, plugins=[]))) == "HELLO"


def test_real_server_is_another_one(nats_server: EmbeddedServer) -> None:
    assert nats_server.url.startswith("nats://127.0.0.1:")


def test_memory(memory_server: MemoryServer, memory_transport: MemoryTransport) -> None:
    client = Client(MemoryTransport(memory_server), plugins=[])
    assert asyncio.run(run(Worker(memory_transport, plugins=[]), client)) == "HELLO"


def test_harness(worker_harness, memory_server: MemoryServer) -> None:
    async def main() -> None:
        async with worker_harness({"shout": shout}) as harness:
            assert harness.server is memory_server
            assert (await harness.run("shout", "hello")).output == "HELLO"

    asyncio.run(main())
"""


def run_pytest(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=BOUND_S,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_fixtures_give_servers_that_run_tasks(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["dagnats_worker.pytest_plugin"]\n')
    (tmp_path / "test_project.py").write_text(PROJECT)
    code, output = run_pytest(tmp_path, "-p", "no:asyncio")
    assert code == 0, output
    assert "4 passed" in output


def test_nobody_has_the_fixtures_who_has_not_named_them(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(PROJECT)
    code, output = run_pytest(tmp_path)
    assert code == 1
    assert "fixture 'nats_server' not found" in output
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "pytest11" not in project.get("entry-points", {})
    assert not [one for one in project["dependencies"] if "pytest" in one]


@pytest.mark.parametrize(("ci", "code", "word"), [("", 0, "skipped"), ("true", 1, "error")])
def test_without_a_server_its_tests_are_left_out_and_in_ci_they_fail(
    tmp_path: Path, ci: str, code: int, word: str
) -> None:
    (tmp_path / "test_project.py").write_text(PROJECT)
    (tmp_path / "conftest.py").write_text(
        "from dagnats_worker.errors import StartError\n"
        "from dagnats_worker.testing import _contract_base\n"
        "def find_server():\n    raise StartError('no nats-server')\n"
        "_contract_base.find_server = find_server\n"
    )
    options = ("-p", "dagnats_worker.pytest_plugin", "-k", "real_server", "-rs")
    found, output = run_pytest(tmp_path, *options, CI=ci)
    assert found == code, output
    assert f"2 {word}" in output
    assert "no nats-server" in output


@pytest.mark.parametrize("module", ["dagnats_worker", "dagnats_worker.testing"])
def test_pytest_is_not_imported_by_who_does_not_test(module: str) -> None:
    code = f"import sys, {module}\nassert not {{'pytest', '_pytest'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_kit_can_be_used_where_pytest_is_not_installed() -> None:
    code = (
        "import sys\nsys.modules['pytest'] = None\n"
        "from dagnats_worker.testing import PluginContract\nassert PluginContract"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
