"""``dagnats-worker run`` in the background, as the tests of processes, health and reload use it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_support import Background, in_background
from support import eventually, unique

BOUND_S = 45.0

APP = """
import asyncio, os, signal, time
from datetime import timedelta
from pathlib import Path
from dagnats_worker import TaskContext, Worker
{more}
worker = Worker({arguments})
LEASE = timedelta(seconds=2)

@worker.task("{type}-who", ack_wait=LEASE)
async def who(ctx: TaskContext) -> dict[str, str | int]:
    return {{"pid": os.getpid(), "worker": ctx.worker_id, "max_tasks": worker.max_tasks}}

@worker.task("{type}-slow")
async def slow(ctx: TaskContext, seconds: float) -> int:
    print("slow runs in", os.getpid(), flush=True)
    await asyncio.sleep(seconds)
    return os.getpid()

@worker.task("{type}-block")
async def block(ctx: TaskContext, seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()

@worker.task("{type}-grow")
async def grow(ctx: TaskContext, megabytes: int) -> int:
    worker.ballast = os.urandom(1_000_000) * megabytes
    return os.getpid()
"""


@dataclass(frozen=True)
class Page:
    """An answer of the health port."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Running:
    """A command that runs, its processes and its health port."""

    def __init__(self, background: Background, task_type: str) -> None:
        self.background = background
        self.task_type = task_type

    @property
    def log(self) -> str:
        return self.background.stderr

    async def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its output."""
        return await asyncio.to_thread(self.background.wait_for, pattern)

    async def wait_ready(self, processes: int = 1) -> None:
        """Wait until so many workers have begun to take tasks."""
        await self.until(lambda: len(re.findall(r"worker \S+ runs", self.log)) >= processes)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that its log, or the system, will show."""

        def seen() -> bool:
            assert self.background.process.poll() is None or holds(), self.log
            return holds()

        try:
            await eventually(seen, BOUND_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def pids(self) -> list[int]:
        """Of all processes that the supervisor has started, oldest first."""
        return [int(pid) for pid in re.findall(r"has the pid (\d+)", self.log)]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.background.signal(number)

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.background.process.wait, BOUND_S)

    async def get(self, path: str, method: str = "GET") -> Page:
        """Ask the health port."""
        found = await self.wait_for(r"health on (http://\S+)/livez")
        return await asyncio.to_thread(fetch, f"{found[1]}{path}", method)


def fetch(url: str, method: str = "GET") -> Page:
    """What a URL answers, whatever the status."""
    request = urllib.request.Request(url, method=method)  # noqa: S310 - a port on this machine
    try:
        with urllib.request.urlopen(request, timeout=BOUND_S) as answer:  # noqa: S310 - the same
            return Page(answer.status, dict(answer.headers), answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Page(error.code, dict(error.headers), error.read().decode())


def write_app(folder: Path, *, arguments: str = "", more: str = "") -> str:
    """Put ``app.py`` into a folder; returns how its task types begin."""
    task_type = unique("many")
    (folder / "app.py").write_text(APP.format(type=task_type, arguments=arguments, more=more))
    return task_type


@contextmanager
def running(
    folder: Path,
    url: str | None,
    *options: str,
    arguments: str = "",
    more: str = "",
    task_type: str | None = None,
) -> Iterator[Running]:
    """Run ``app.py``; what it has started is killed at the end.

    Args:
        arguments: Of ``Worker(...)``.
        more: Code above it.
        task_type: For a folder that has an ``app.py`` already.
    """
    task_type = task_type or write_app(folder, arguments=arguments, more=more)
    where = () if url is None else ("--url", url)
    with in_background("run", "app", *where, *options, folder=folder) as background:
        run = Running(background, task_type)
        try:
            yield run
        finally:
            for pid in run.pids():
                end(pid)


def end(pid: int) -> None:
    """Kill a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    return _state(pid) not in ("", "Z")


def is_frozen(pid: int) -> bool:
    """Whether SIGSTOP has reached a process, which may take a moment."""
    return _state(pid).startswith("T")


def _state(pid: int) -> str:
    """The letter of its state; empty where there is no such process."""
    if Path("/proc/self/stat").exists():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1].upper()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()[:1]
