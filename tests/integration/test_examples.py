"""The examples and the README do what they say.

Method: each example as its reader runs it, and its whole output; the README's code against the
example that it shows. Real: the programs and their server. Fake: nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import environment, in_background, run_command

from dagnats_worker._embedded import EmbeddedServer

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
HELPERS = {"_server.py", "app.py"}
BOUND_S = 60

OUTPUT = {
    "agent_loop": """
        turn 0: think
        turn 1: search
        turn 2: read
        Six by seven? 42.
    """,
    "client_awaits_results": """
        squares: [0, 1, 4, 9, 16]
        event: step.started attempt 1
        event: step.completed attempt 1
        cancelled while it ran
    """,
    "groups": """
        frame 0 on the gpu
        frame 1 on the cpu
        frame 2 on the gpu
    """,
    "hello": """
        {'text': 'Hello, Ada!', 'age': 211}
        refused: unmarshal input: Expected `int`, got `str` - at `$.born`
    """,
    "process_handler": """
        9592 primes, counted in another process
    """,
    "raw_handler": """
        {'quotient': 2.5, 'header': 'Ada'}
        failed (non_retriable): division by zero
    """,
    "retries": """
        flaky: attempt 1
        flaky: attempt 2
        flaky: attempt 3
        flaky: completed with 'at last'
        limited: attempt 1
        limited: attempt 2
        limited: completed with 'let in'
        hopeless: attempt 1
        hopeless: failed for good: the order was deleted
    """,
    "streaming": """
        chunk: chunks
        chunk: arrive
        chunk: one
        chunk: by
        chunk: one
        words: 5
    """,
    "sync_handler": """
        {'digest': '36b6f0204a80', 'ran': 'in a thread'}
        {'digest': 'e21dcf13079a', 'ran': 'in a thread'}
        {'digest': '427755e659b3', 'ran': 'in a thread'}
        {'digest': '085352cbc2ab', 'ran': 'in a thread'}
        side by side
    """,
    "trigger_envelope": """
        order 1 shipped
        order 2 shipped
        GET /orders/2 by trigger shop
    """,
}


def run_example(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=BOUND_S,
        check=False,
    )


def expected(name: str) -> list[str]:
    return [line.strip() for line in OUTPUT[name].strip().splitlines()]


@pytest.mark.parametrize("name", sorted(OUTPUT))
def test_example_does_what_it_says(name: str, shared_server: EmbeddedServer) -> None:
    done = run_example(name, NATS_URL=shared_server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected(name)
    assert "still run" not in done.stderr, "nothing had to be cut off at the end"


def test_example_starts_a_server_where_there_is_none() -> None:
    done = run_example("hello")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected("hello")


def test_every_example_is_run_and_listed() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    assert files - HELPERS == {f"{name}.py" for name in OUTPUT}
    listed = set(re.findall(r"\((\w+\.py)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == files


def test_first_worker_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (app,) = [block for block in blocks if "worker = Worker()" in block]
    assert len(app.splitlines()) <= 12
    (tmp_path / "app.py").write_text(app)
    commands = shown_commands()
    run, submit = (
        next(line for line in commands if line.startswith(f"dagnats-worker {name} "))
        for name in ("run", "submit")
    )
    assert run == "dagnats-worker run app:worker --embedded"
    assert submit == "dagnats-worker submit greet '\"Ada\"' --wait"
    with in_background("run", "app:worker", "--embedded", folder=tmp_path) as worker:
        url = worker.wait_for(r"server  (nats://[\d.:]+)")[1]
        worker.wait_for("runs; stop it with")
        done = run_command("submit", "greet", '"Ada"', "--wait", "--url", url)
    assert done.stdout == '"Hello, Ada!"\n'
    assert done.stdout in (ROOT / "README.md").read_text()


def test_readme_and_example_show_the_same_worker() -> None:
    app = (EXAMPLES / "app.py").read_text()
    code = app.partition("annotations\n\n")[2]
    assert code in (ROOT / "README.md").read_text()


def test_links_and_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target
    for line in shown_commands():
        name = line.split()[1]
        assert name in run_command("--help").stdout, line
    plugins = [path for path in (ROOT / "plugins").glob("*") if (path / "pyproject.toml").exists()]
    install = "pip install '.[embedded]' ./plugins/*" if plugins else "pip install '.[embedded]'"
    assert f"{install} && dagnats-worker demo" in readme
    assert "pip install tox && tox" in readme


def shown_commands() -> list[str]:
    """The lines of the README's shell blocks that start our command."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("dagnats-worker ")]
