"""The command ``dagnats-worker signal``.

Method: the command as users run it, and what the bucket then has. Real: the server and the command.
Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from cli_support import one_error_line, run_command
from nats.js import JetStreamContext
from signals_support import SOON, Serve, completed, started
from support import unique

from dagnats_worker import Client, EmbeddedServer, TaskContext

pytestmark = pytest.mark.server


@pytest.fixture
def url(shared_server: EmbeddedServer) -> str:
    return shared_server.url


async def value(js: JetStreamContext, run_id: str, name: str = "go") -> bytes:
    return (await (await js.key_value("signals")).get(f"{run_id}.{name}")).value or b""


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        (['{"by": "Ada"}'], b'{"by": "Ada"}'),
        ([], b"null"),
        (["yes, \xe9", "--raw"], b"yes, \xc3\xa9"),
        (["-"], b'["from stdin"]'),
        (["-", "--raw"], b'["from stdin"]'),
        (["@signal.json"], b'"from a file"'),
    ],
)
async def test_data_is_stored_as_it_is_given(
    url: str, js: JetStreamContext, tmp_path: Path, arguments: list[str], stored: bytes
) -> None:
    (tmp_path / "signal.json").write_text('"from a file"')
    run_id, data = unique(), b'["from stdin"]'
    done = run_command("signal", run_id, "go", *arguments, "--url", url, cwd=tmp_path, stdin=data)
    assert (done.returncode, done.stdout) == (0, f"sent go to {run_id}\n")
    assert "has not begun" in done.stderr
    assert await value(js, run_id) == stored


async def test_bytes_of_a_file_are_taken_as_they_are(
    url: str, js: JetStreamContext, tmp_path: Path
) -> None:
    run_id = unique()
    (tmp_path / "scan").write_bytes(b"\xff\x00")
    done = run_command("signal", run_id, "go", "@scan", "--raw", "--url", url, cwd=tmp_path)
    assert done.returncode == 0
    assert await value(js, run_id) == b"\xff\x00"


async def test_signal_reaches_a_run_and_says_what_is_known_of_it(
    url: str, js: JetStreamContext, client: Client, serve: Serve
) -> None:
    task_type = unique()

    async def handler(ctx: TaskContext) -> None:
        ctx.complete(await ctx.wait_for_signal("go", SOON))

    async with serve(task_type, handler):
        run = await client.submit(task_type)
        await started(client, run.run_id)
        arguments = ("signal", run.run_id, "go", "[1]", "--json", "--url", url)
        done = await in_thread(*arguments)
        assert json.loads(done.stdout) == {
            "run_id": run.run_id,
            "name": "go",
            "bytes": 3,
            "run_status": "running",
        }
        assert done.stderr == ""
        await completed(js, run.run_id)
        done = await in_thread(*arguments[:-3], "--url", url)
        assert "is completed; nobody may wait for a signal any more" in done.stderr


async def in_thread(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command while the worker of the test goes on."""
    return await asyncio.to_thread(run_command, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "go", "yes"], "DATA is not JSON: Expecting value"),
        (["run", "go", "yes"], "'\"yes\"'; for bytes there is --raw"),
        (["run", "go", "NaN"], "DATA is not JSON: NaN is a number in JavaScript only"),
        (["run", "go", "@nothing"], "cannot read 'nothing': No such file or directory"),
        (["run", "*"], "name of a signal '*' is not usable"),
        (["a.b", "go"], "run id 'a.b' is not usable"),
        (["a" * 5000, "go"], "run id 'aaaaaaaaaaaaaaaaaaaa...' of 5000 characters is too long"),
    ],
)
def test_what_cannot_be_sent_is_one_line(url: str, arguments: list[str], says: str) -> None:
    done = run_command("signal", *arguments, "--url", url)
    assert done.returncode == 2
    assert says in one_error_line(done)


def test_missing_bucket_is_one_line_that_names_setup(empty_server: EmbeddedServer) -> None:
    done = run_command("signal", "run", "go", "--url", empty_server.url)
    assert done.returncode == 1
    line = one_error_line(done)
    assert "bucket 'signals' not found" in line
    assert "`dagnats-worker setup`" in line


def test_command_is_listed_and_explains_itself() -> None:
    assert "signal" in run_command("--help").stdout
    text = run_command("signal", "--help").stdout
    assert "dagnats-worker signal 7f3a approved" in text
