"""A real nats-server as a child process: for the demo, for development, for tests."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dagnats_worker._server_process import ServerProcess, find_server, reported_port
from dagnats_worker.errors import StartError, UsageError

__all__ = ["EmbeddedServer"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0  # recovering a large store takes its time
STOP_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.01
LOG_BYTES_MAX = 10_000_000
LOG_TAIL_BYTES = 64_000

BASE_CONFIG = "jetstream: enabled\nlogfile_max_num: 2\n"


class EmbeddedServer:
    """Run a nats-server with JetStream for as long as a block lasts.

    The server listens on 127.0.0.1 only. Used with ``async with``, or with a plain ``with`` where
    there is no event loop. It does not outlive its parent: on Linux the kernel kills it with the
    parent; elsewhere it is stopped when the interpreter exits, which a killed parent does not do.
    Only the temporary files of a killed parent stay behind.

    Args:
        store_dir: Where streams are kept. A given directory stays and can be used again; None is
            a temporary one that goes with the server.
        port: 0 is a free port that the server chooses.
        config: More configuration in nats-server's own language, such as ``max_payload`` or
            ``authorization``. Address, port and store are not taken from it.

    Attributes:
        store_dir: Where streams are kept, or None while a temporary server is not running.
        version: The server's version, such as ``2.15.1``; empty before the first start.
    """

    def __init__(
        self, store_dir: Path | str | None = None, port: int = 0, *, config: str | None = None
    ) -> None:
        self.store_dir = None if store_dir is None else Path(store_dir).absolute()
        self.version = ""
        self._temporary_store = store_dir is None
        self._requested_port = port
        self._port = port
        self._config = config or ""
        self._executable = Path()
        self._run_dir: Path | None = None
        self._child: ServerProcess | None = None
        self._paused = False
        self._owner_pid = os.getpid()

    @property
    def port(self) -> int:
        """The port the server listens on; what was asked for while it has not been started."""
        return self._port

    @property
    def url(self) -> str:
        """What a client connects to; stays the same over :meth:`kill` and :meth:`restart`."""
        if self._run_dir is None:
            raise UsageError("the embedded server has no url: it is not started; call start()")
        return f"nats://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the server that was started last."""
        if self._child is None:
            raise UsageError("the embedded server has no pid: it is not started; call start()")
        return self._child.process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives; false too when it ended by itself."""
        return self._child is not None and not self._child.exited.is_set()

    def log_tail(self, lines: int = 10) -> str:
        """The last lines that the server wrote; empty once it is stopped."""
        if self._run_dir is None:
            return ""
        text = ""
        for name in ("nats-server.log", "output.log"):
            with suppress(FileNotFoundError):
                data = (self._run_dir / name).read_bytes()[-LOG_TAIL_BYTES:]
                text += data.decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            StartError: There is no nats-server, it is too old, or it ended at once.
            UsageError: It is started already.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(self._start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self.kill()  # lets the thread return at once
            await asyncio.gather(starting, return_exceptions=True)
            await asyncio.to_thread(self._stop)
            raise

    async def stop(self) -> None:
        """Stop the server and remove what was temporary; harmless when it is not running."""
        await asyncio.to_thread(self._stop)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would; the store stays for :meth:`restart`."""
        if self._child is not None:
            self._child.process.kill()
            self._child.exited.wait(STOP_TIMEOUT_S)
        self._paused = False

    def restart(self) -> None:
        """Start again on the same port and store; stops the process first where it still runs.

        Raises:
            StartError: As in :meth:`start`.
            UsageError: It was never started.
        """
        if self._run_dir is None:
            raise UsageError("the embedded server cannot restart: it is not started; call start()")
        self._terminate()
        self._launch(self._run_dir)

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): connections stay open and nothing answers."""
        if self.running and self._child is not None:
            self._child.freeze()
            self._paused = True

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        if self._paused and self._child is not None:
            self._child.process.send_signal(signal.SIGCONT)
        self._paused = False

    def _start(self) -> None:
        if self._run_dir is not None:
            raise UsageError(f"the embedded server is started already, at {self.url}")
        self._executable, self.version = find_server()
        self._run_dir = Path(tempfile.mkdtemp(prefix="dagnats-nats-"))
        atexit.register(self._at_exit)
        try:
            if self._temporary_store:
                self.store_dir = self._run_dir / "store"
            (self._run_dir / "nats.conf").write_text(BASE_CONFIG + self._config, encoding="utf-8")
            self._launch(self._run_dir)
        except BaseException:
            self._stop()
            raise

    def _launch(self, run_dir: Path) -> None:
        # Flags win over the configuration file, so the given text cannot open the server to the
        # network. The server binds a free port itself (-1) and reports it in the ports file: no
        # other process can take the port in between.
        command = [
            str(self._executable),
            *("--config", str(run_dir / "nats.conf")),
            *("--addr", HOST, "--port", str(self._port or -1)),
            *("--store_dir", str(self.store_dir)),
            *("--ports_file_dir", str(run_dir)),
            *("--log", str(run_dir / "nats-server.log"), "--log_size_limit", str(LOG_BYTES_MAX)),
        ]
        child = self._child = ServerProcess(command, run_dir / "output.log")
        deadline = time.monotonic() + START_TIMEOUT_S
        while (port := reported_port(run_dir, child.process.pid)) is None:
            if child.exited.wait(POLL_INTERVAL_S):
                raise StartError(self._why_it_ended(child.process.returncode))
            if time.monotonic() > deadline:
                raise StartError(
                    f"nats-server {self.version} was not ready within {START_TIMEOUT_S:.0f} s; "
                    f"its last log lines:\n{self.log_tail()}"
                )
        self._port = port

    def _why_it_ended(self, code: int | None) -> str:
        tail = self.log_tail()
        if "address already in use" in tail:
            return (
                f"port {self._port} on {HOST} is in use; stop what listens there, choose another "
                f"port, or pass port 0 for a free one"
            )
        return (
            f"nats-server {self.version} at {self._executable} ended with code {code} while "
            f"starting on store {self.store_dir}; its last log lines:\n{tail}"
        )

    def _terminate(self) -> None:
        if self._child is None:
            return
        self.resume()  # a frozen process would not see SIGTERM
        self._child.process.terminate()
        if not self._child.exited.wait(STOP_TIMEOUT_S):
            self.kill()

    def _stop(self) -> None:
        self._terminate()
        self._child = None
        self._port = self._requested_port
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        if self._temporary_store:
            self.store_dir = None
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # a forked child must not stop its parent's server
            self._stop()
