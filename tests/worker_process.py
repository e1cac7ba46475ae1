"""Workers in processes of their own, to be killed, frozen and started again by tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support import eventually
from worker_support import BOUND_S

PROLOGUE = """
import asyncio, os, signal, sys, time
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from dagnats_worker import *
from worker_support import LEASE, QUICK, configured, quick_retry

url, task_type, diary = sys.argv[1:4]

def note(line):
    with open(diary, "a") as file:
        file.write(f"{line}\\n")

def times(line):
    return Path(diary).read_text().splitlines().count(line)
"""

RUN_ONCE = "worker.run()"
RUN_AGAIN_AND_AGAIN = """
while True:
    child = os.fork()
    if not child:
        worker.run()
        os._exit(0)
    os.waitpid(child, 0)
"""


class WorkerProcess:
    """A worker in a process of its own, and the diary that its handlers write."""

    def __init__(self, process: subprocess.Popen[bytes], diary: Path) -> None:
        self.process = process
        self._diary = diary

    def noted(self, line: str) -> int:
        """How often the handlers wrote this line."""
        return self._diary.read_text().splitlines().count(line)

    async def wait_noted(self, line: str, times: int = 1) -> None:
        await eventually(lambda: self.noted(line) >= times, BOUND_S, what=f"{line!r} in the diary")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    async def ended(self) -> int:
        """Wait for its end and return the exit code."""
        async with asyncio.timeout(BOUND_S):
            return await asyncio.to_thread(self.process.wait)


@contextmanager
def worker_process(
    url: str, task_type: str, diary: Path, code: str, *, respawn: bool = False
) -> Iterator[WorkerProcess]:
    """Run code that makes ``worker``; killed at the end, with whatever it has forked.

    Args:
        url: Of the server.
        task_type: What the code finds as ``task_type``.
        diary: Where ``note(line)`` writes to; shared by workers that are given the same.
        code: Runs after ``PROLOGUE``.
        respawn: When a worker ends, fork the next one at once.
    """
    diary.touch()
    run = RUN_AGAIN_AND_AGAIN if respawn else RUN_ONCE
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code) + run, url, task_type, str(diary)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        yield WorkerProcess(process, diary)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
