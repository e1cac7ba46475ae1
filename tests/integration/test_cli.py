"""The command line as people and scripts meet it.

Method: the command in a process of its own; its output, its exit code, what is stored. Real: the
command, the server, the signals. Fake: nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Background, environment, in_background, one_error_line, run_command
from nats.js import JetStreamContext
from support import eventually, free_port, unique

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._jetstream.provision import RESOURCES
from dagnats_worker.cli._main import SECTIONS, run_command_line

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

COMMANDS = [name for commands in SECTIONS.values() for name in commands]

WORKER = """
import asyncio
from dagnats_worker import NonRetryableError, TaskContext, Worker

worker = Worker()

@worker.task("{type}")
async def greet(ctx: TaskContext, name: str) -> dict[str, str | None]:
    ctx.log.info("greeting %s", name)
    return {{"text": f"Hello, {{name}}!", "asked": ctx.headers.get("Asked-By")}}

@worker.task("{type}-broken")
async def broken(ctx: TaskContext) -> None:
    raise NonRetryableError("no way")

@worker.task("{type}-slow")
async def slow(ctx: TaskContext, seconds: float) -> str:
    print("slow runs", flush=True)
    await asyncio.sleep(seconds)
    return "slept"

@worker.task("{type}-stubborn")
async def stubborn(ctx: TaskContext) -> None:
    print("stubborn runs", flush=True)
    await asyncio.sleep(60)
"""

UNREACHABLE = """
from datetime import timedelta
from dagnats_worker import Worker, WorkerConfig

worker = Worker({url!r}, config=WorkerConfig(connect_timeout=timedelta(seconds=0.3)))

@worker.task("{type}")
def shout(text: str) -> str:
    return text.upper()
"""


def write_app(folder: Path, text: str = WORKER, **values: str) -> str:
    """Put ``app.py`` into a folder; returns the task type that only this test uses."""
    folder.mkdir(exist_ok=True)
    task_type = unique("cli")
    (folder / "app.py").write_text(text.format(type=task_type, **values))
    return task_type


# ----------------------------------------------------------------------- the command itself


def imported_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after running code."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules}, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    return set(done.stdout.splitlines())


def test_importing_the_package_imports_no_nats() -> None:
    loaded = imported_by("import dagnats_worker")
    assert "dagnats_worker" in loaded
    assert not loaded & {"nats", "rich", "click", "pydantic", "uvloop", "stevedore"}


def test_help_lists_all_commands_and_imports_none() -> None:
    code = (
        "import sys\nfrom dagnats_worker.cli import main\nsys.argv[1:] = ['--help']\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not [name for name in sys.modules if name in "
        "('dagnats_worker.cli._run', 'dagnats_worker.cli._demo', 'dagnats_worker.cli._submit')]"
    )
    assert not imported_by(code) & {"nats", "rich", "pydantic", "uvloop", "stevedore"}
    done = run_command("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(name: str) -> None:
    done = run_command(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: dagnats-worker {name} [OPTIONS]")
    if name not in ("demo", "dlq", "server", "plugins"):
        assert "--creds FILE" in done.stdout.partition("Connection:")[2]
        assert "[$NATS_CREDS]" in done.stdout


def test_console_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("dagnats-worker")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run_command("--version").stdout
    assert re.fullmatch(r"dagnats-worker \d+\.\d+\.\d+\n", done.stdout)


def test_no_command_shows_the_help_and_is_a_usage_error() -> None:
    done = run_command()
    assert done.returncode == 2
    assert "Start here:" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "no command 'rnu'; did you mean 'run'? See 'dagnats-worker --help'"),
        (
            ["xyz"],
            "no command 'xyz'; there are demo, run, server, submit, events, "
            "dlq, setup, doctor, plugins.",
        ),
        (["submit"], "Missing argument 'TYPE'. See 'dagnats-worker submit --help'"),
        (["submit", "t", "--wiat"], "No such option"),
        (["submit", "t t"], "task type 't t' contains ' '"),
        (["submit", "t", '{"name" "Ada"}'], """(column 9, at '"Ada"}')"""),
        (["submit", "t", '{"a":\n1,}'], "line 2, column"),
        (["submit", "t", "[1,"], "expecting value (column 4, at the end)"),
        (["submit", "t", "Ada"], """a text needs quotes of its own: '"Ada"'"""),
        (["submit", "t", "NaN"], "NaN is a number in JavaScript only"),
        (["submit", "t", ""], "the input is not JSON"),
        (["submit", "t", "[" * 200_000], "the input is not JSON"),
        (["submit", "t", "--header", "x"], "'x' is not a header; write name=value"),
        (["submit", "t", "--header", "a b=c"], "'a b' cannot be a header's name"),
        (["submit", "t", "--run-id", "a.b"], "'a.b' is not a run id"),
        (["submit", "t", "--group", "*"], "group '*' contains '*'"),
        (["submit", "t", "--wait", "--timeout", "3"], "'3' has no unit; write 3s"),
        (["submit", "t", "--wait", "--timeout", "0s"], "'0s' is no time at all"),
        (["submit", "t", "--timeout", "3s"], "--timeout says how long to --wait; give both"),
        (["submit", "t", "--user", "ada"], "--user needs a password"),
        (["submit", "t", "--password", "x"], "--password needs a --user"),
        (["submit", "t", "--creds", "/no/such"], "File '/no/such' does not exist"),
        (["submit", "t", "--tls-cert", __file__], "--tls-cert and --tls-key belong together"),
        (["submit", "t", "--tls-ca", __file__], "cannot use the TLS files"),
        (["events"], "Missing argument 'RUN'"),
        (["setup", "--replicas", "2"], "'2' is not one of '1', '3', '5'"),
        (["run", "app", "--store", "x"], "--store belongs to --embedded"),
        (["run", "app", "--embedded", "--url", "nats://x"], "give one of them"),
        (["run", "app", "--max-tasks", "0"], "0 is not in the range"),
        (["server", "--port", "99999"], "99999 is not in the range"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # In this process, because there are so many; two of them are run for real elsewhere.
    monkeypatch.setattr(sys, "argv", ["dagnats-worker", *arguments])
    assert run_command_line() == 2
    written = capfd.readouterr()
    assert written.out == ""
    assert written.err.startswith("error: ")
    assert message in written.err
    assert written.err.endswith("--help'\n")
    assert written.err.count("\n") == 1


def test_bad_usage_of_the_real_command_is_code_2() -> None:
    done = run_command("submit", "t", '{"name" "Ada"}')
    assert (done.returncode, done.stdout) == (2, "")
    assert "expecting ':' delimiter (column 9" in one_error_line(done)


def test_stdin_that_is_not_utf_8_is_refused_with_the_byte() -> None:
    done = run_command("submit", "t", "-", stdin=b'"ab\xff"')
    assert done.returncode == 2
    assert "stdin is not UTF-8: byte 0xff at offset 3" in one_error_line(done)


# ----------------------------------------------------------------------- no server, no streams


def test_no_server_is_one_line_that_says_how_to_start_one_and_no_password() -> None:
    url = f"nats://ada:secret@127.0.0.1:{free_port()}"
    done = run_command("submit", "t", "1", "--url", url)
    assert done.returncode == 1
    line = one_error_line(done)
    assert f"no NATS server answered at {url.replace('ada:secret@', '')}" in line
    assert "start one with `dagnats-worker server`" in line
    assert "secret" not in line


def test_missing_streams_are_one_line_that_names_setup(
    empty_server: EmbeddedServer, tmp_path: Path
) -> None:
    write_app(tmp_path)
    done = run_command("run", "app", "--url", empty_server.url, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: stream TASK_QUEUES not found")
    assert "`dagnats-worker setup`" in done.stderr

    first = run_command("setup", "--url", empty_server.url)
    assert first.returncode == 0
    names = [resource.name for resource in RESOURCES]
    assert first.stdout.splitlines() == [
        *(f"created  {name}" for name in names),
        f"{len(names)} resources created, 0 there already",
    ]
    again = run_command("setup", "--json", NATS_URL=empty_server.url)
    assert json.loads(again.stdout) == {"created": [], "present": names}


def test_credentials_come_from_options_and_from_the_environment(tmp_path: Path) -> None:
    config = "authorization { user: ada, password: secret }"
    task_type = write_app(tmp_path)
    with EmbeddedServer(config=config) as server:
        wrong = run_command("setup", "--url", server.url, "--user", "ada", "--password", "no")
        assert wrong.returncode == 1
        assert "refused the credentials" in one_error_line(wrong)
        known = {"NATS_URL": server.url, "NATS_USER": "ada", "NATS_PASSWORD": "secret"}
        assert run_command("setup", **known).returncode == 0
        with in_background("run", "app", folder=tmp_path, **known) as worker:
            worker.wait_for("runs; stop it with")
            done = run_command("submit", task_type, '"Ada"', "--wait", **known)
            assert done.returncode == 0


# ----------------------------------------------------------------------- run


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("app:wroker", "module 'app' has no 'wroker'; did you mean 'app:worker'?"),
        ("ap", "nor installed; did you mean 'app'?"),
        ("two", "module 'two' has 2 workers; say which: two:a or two:b"),
        ("broken", "cannot import 'broken': ModuleNotFoundError: No module named 'nothing_here'"),
        ("app -o nonsense", "-o nonsense: write it as plugin.key=value"),
        ("app -o worker.nope=1", "'worker' has no setting 'nope'"),
    ],
)
def test_worker_that_cannot_be_found_is_one_line(tmp_path: Path, target: str, message: str) -> None:
    write_app(tmp_path)
    (tmp_path / "two.py").write_text("from dagnats_worker import Worker\na, b = Worker(), Worker()")
    (tmp_path / "broken.py").write_text("import nothing_here")
    done = run_command("run", *target.split(), cwd=tmp_path)
    assert done.returncode == 1
    assert message in one_error_line(done)


def test_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_here")
    done = run_command("run", "broken", cwd=tmp_path, DAGNATS_WORKER_TRACEBACK="1")
    assert done.returncode == 1
    assert 'broken.py", line 1, in <module>' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot import 'broken'")


def test_run_embedded_needs_no_server_and_drains(tmp_path: Path) -> None:
    task_type = write_app(tmp_path)
    with in_background("run", "app", "--embedded", folder=tmp_path) as worker:
        worker.wait_for("runs; stop it with")
        assert f"serves  {task_type}, {task_type}-broken" in worker.stderr
        assert "store   a temporary folder" in worker.stderr
        url = worker.wait_for(r"server  (nats://[\d.:]+), nats-server \d")[1]
        done = run_command("submit", task_type, '"Ada"', "--wait", "--url", url)
        assert json.loads(done.stdout)["text"] == "Hello, Ada!"
        run_id = run_command("submit", f"{task_type}-slow", "1", "--url", url).stdout.strip()
        worker.wait_for("slow runs")
        worker.signal()
        worker.wait_for(f"stopping: waiting up to 30 s for 1 {task_type}-slow; a second signal")
        assert worker.wait() == 0
    assert "stopped with code 0: 2 completed, 0 failed" in worker.stderr
    assert run_id


def test_command_line_is_stronger_than_the_module(
    tmp_path: Path, shared_server: EmbeddedServer
) -> None:
    unreachable = f"nats://127.0.0.1:{free_port()}"
    write_app(tmp_path, UNREACHABLE, url=unreachable)
    weak = run_command("run", "app", cwd=tmp_path, NATS_URL=shared_server.url)
    assert weak.returncode == 1
    assert f"no NATS server answered at {unreachable}" in weak.stderr
    options = ("--url", shared_server.url, "--max-tasks", "3", "--drain-timeout", "1m30s")
    with in_background("run", "app", *options, folder=tmp_path) as worker:
        worker.wait_for("runs; stop it with")
        assert f"server  {shared_server.url}\n" in worker.stderr
        assert "3 tasks at once" in worker.stderr
        assert "running tasks then have 1 m 30 s to end" in worker.stderr
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_drain_that_takes_too_long_is_code_3(tmp_path: Path, shared_server: EmbeddedServer) -> None:
    task_type = write_app(tmp_path)
    options = ("--url", shared_server.url, "--drain-timeout", "100ms")
    with in_background("run", "app", *options, folder=tmp_path) as worker:
        run_command("submit", f"{task_type}-stubborn", "--url", shared_server.url)
        worker.wait_for("stubborn runs")
        worker.signal()
        assert worker.wait() == 3


def test_second_signal_is_code_130(tmp_path: Path, shared_server: EmbeddedServer) -> None:
    task_type = write_app(tmp_path)
    options = ("--url", shared_server.url, "--no-plugins", "-o", "worker.drain_timeout=45s")
    with in_background("run", "app", *options, folder=tmp_path) as worker:
        run_command("submit", f"{task_type}-stubborn", "--url", shared_server.url)
        worker.wait_for("stubborn runs")
        worker.signal()
        worker.wait_for("stopping: waiting up to 45 s for 1")
        worker.signal()
        assert worker.wait() == 130


def test_json_logs_carry_the_task(tmp_path: Path, shared_server: EmbeddedServer) -> None:
    task_type = write_app(tmp_path)
    options = ("--url", shared_server.url, "--log-format", "json", "--log-level", "info")
    with in_background("run", "app", *options, folder=tmp_path) as worker:
        worker.wait_for("runs; stop it with")
        run_command(
            *("submit", task_type, '"Ada"', "--wait", "--run-id", task_type),
            *("--url", shared_server.url),
        )
        worker.wait_for("greeting Ada")
    entries = [json.loads(line) for line in worker.stderr.splitlines() if line.startswith("{")]
    greeting = next(entry for entry in entries if entry["message"] == "greeting Ada")
    assert greeting["level"] == "info"
    assert (greeting["task_type"], greeting["run_id"]) == (task_type, task_type)


def test_logging_of_the_module_stands_unless_asked_otherwise(
    tmp_path: Path, shared_server: EmbeddedServer
) -> None:
    write_app(tmp_path)
    own = "import logging\nlogging.basicConfig(level='INFO', format='MINE %(message)s')\n"
    (tmp_path / "app.py").write_text(own + (tmp_path / "app.py").read_text())
    for options, line in ([], r"MINE worker \S+ runs"), (["--log-level", "info"], "info +worker"):
        arguments = ("run", "app", "--url", shared_server.url, *options)
        with in_background(*arguments, folder=tmp_path) as worker:
            worker.wait_for(line)


# ----------------------------------------------------------------------- submit, events


@pytest.fixture(scope="module")
def fleet(
    shared_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A worker that runs; the URL of its server, and its task type."""
    folder = tmp_path_factory.mktemp("fleet")
    task_type = write_app(folder)
    with in_background("run", "app", "--url", shared_server.url, folder=folder) as worker:
        worker.wait_for("runs; stop it with")
        yield shared_server.url, task_type


def test_submit_prints_the_output_or_the_run(fleet: tuple[str, str]) -> None:
    url, task_type = fleet
    header = ("--header", "Asked-By=Grace=H")
    waited = run_command("submit", task_type, '"Ada"', "--wait", *header, "--url", url)
    assert json.loads(waited.stdout) == {"text": "Hello, Ada!", "asked": "Grace=H"}
    assert (waited.returncode, waited.stderr) == (0, "")

    from_stdin = run_command(
        "submit", task_type, "-", "--wait", "--json", stdin='"Édith"\n'.encode(), NATS_URL=url
    )
    answer = json.loads(from_stdin.stdout)
    assert answer["status"] == "completed"
    assert answer["output"]["text"] == "Hello, Édith!"

    run_id = unique("run")
    named = run_command("submit", task_type, '"Ada"', "--run-id", run_id, "--url", url)
    assert (named.returncode, named.stdout, named.stderr) == (0, f"{run_id}\n", "")
    again = run_command("submit", task_type, '"Ada"', "--run-id", run_id, "--url", url)
    assert again.stdout == f"{run_id}\n"
    assert "submitted before" in again.stderr


def test_task_that_failed_is_code_1(fleet: tuple[str, str]) -> None:
    url, task_type = fleet
    done = run_command("submit", f"{task_type}-broken", "--wait", "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_error_line(done).endswith("failed: no way")
    as_json = run_command("submit", f"{task_type}-broken", "--wait", "--json", "--url", url)
    assert (as_json.returncode, as_json.stderr) == (1, "")
    answer = json.loads(as_json.stdout)
    assert (answer["status"], answer["error"]) == ("failed", "no way")
    bad_input = run_command("submit", task_type, "7", "--wait", "--url", url)
    assert "Expected `str`, got `int`" in one_error_line(bad_input)


def test_wait_that_is_over_says_where_to_look(shared_server: EmbeddedServer) -> None:
    nobody = unique("nobody")
    done = run_command(
        "submit", nobody, "1", "--wait", "--timeout", "200ms", "--url", shared_server.url
    )
    assert done.returncode == 1
    line = one_error_line(done)
    assert "has not ended within 200 ms" in line
    assert "dagnats-worker events" in line


def test_events_shows_what_happened(fleet: tuple[str, str]) -> None:
    url, task_type = fleet
    run_id = unique("run")
    slow = ("submit", f"{task_type}-slow", "0.3", "--run-id", run_id)
    run_command(*slow, "--url", url)
    followed = run_command("events", run_id, "--follow", "--url", url)
    assert followed.returncode == 0
    head, started, completed = followed.stdout.splitlines()
    assert head.split() == ["TIME", "EVENT", "STEP", "TRY"]
    assert re.search(r"step\.started +\S+-slow +1 +by worker-\w+$", started)
    assert re.search(r'\+3\d\d ms +step\.completed +\S+-slow +1 +"slept"$', completed)

    as_json = run_command("events", run_id, "--json", NATS_URL=url)
    events = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [event["event"] for event in events] == ["step.started", "step.completed"]
    assert events[1]["payload"] == "slept"
    assert run_command("events", run_id, "--url", url).stdout == followed.stdout


def test_run_without_events_is_an_error(shared_server: EmbeddedServer) -> None:
    done = run_command("events", unique("run"), "--url", shared_server.url)
    assert done.returncode == 1
    assert "has no events" in one_error_line(done)


async def test_ctrl_c_in_a_client_is_silent(
    shared_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    subject = f"task.{unique('nobody')}"

    async def is_submitted() -> bool:
        info = await js.stream_info("TASK_QUEUES", subjects_filter=f"{subject}.>")
        return bool(info.state.subjects)

    arguments = ("submit", subject.partition(".")[2], "--wait", "--url", shared_server.url)
    with in_background(*arguments, folder=tmp_path) as client:
        await eventually(is_submitted)
        client.signal()
        assert client.wait() == 130
    assert (client.stdout, client.stderr) == ("", "")


# ----------------------------------------------------------------------- server


def test_server_says_where_it_is_and_keeps_its_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ("server", "--port", "0", "--store", str(store))
    run_id = unique("run")
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        with in_background(*arguments, folder=tmp_path) as server:
            url = server_url(server)
            assert f"dagnats-worker run app:worker --url {url}" in server.stdout
            submitted = run_command("submit", "nobody", "--run-id", run_id, "--url", url)
            server.signal(signal_number)
            assert server.wait() == 0
        assert server.stderr == ""
    assert "submitted before" in submitted.stderr, "the second server knows what the first was told"


def test_port_that_is_taken_is_one_line(shared_server: EmbeddedServer) -> None:
    done = run_command("server", "--port", str(shared_server.port))
    assert done.returncode == 1
    assert f"port {shared_server.port} on 127.0.0.1 is in use" in one_error_line(done)


def test_server_that_dies_ends_the_command(tmp_path: Path) -> None:
    with in_background("server", "--port", "0", folder=tmp_path) as server:
        server_url(server)
        children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
        pids = [int(pid) for path in children for pid in path.read_text().split()]
        if not pids:
            pytest.skip("the kernel does not say which children a process has")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert server.wait() == 1
    assert "error: the nats-server ended by itself" in server.stderr


def server_url(server: Background) -> str:
    return server.wait_for(r"url +(nats://[\d.:]+)")[1]
