"""One process of ``--processes`` as its supervisor has it: started, asked, told to end, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta

from dagnats_worker._config import WorkerConfig
from dagnats_worker._routes import Response
from dagnats_worker._serve import FORCED_WITHIN_S
from dagnats_worker.cli._link import (
    LINE_BYTES_MAX,
    VARIABLE,
    Line,
    Place,
    config_heard,
    encoded,
    response_heard,
)

logger = logging.getLogger("dagnats_worker.supervisor")

HAVE_STARTED = ("running", "draining")
"""A process may have begun to drain before it has told that it runs."""
ANSWER_WAIT_S = 3.0
CLOSING_MAX_S = 15.0
"""What a drain may take beyond its time for the handlers: to give back, to flush, to close."""
KILLED_WITHIN_S = FORCED_WITHIN_S + 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process says of a page.

    Attributes:
        merge: What makes one page of several.
    """

    response: Response
    merge: str


class Child:
    """A process that runs ``dagnats-worker run`` with the arguments of this one.

    Attributes:
        number: Of its place; the process that replaces it has the same.
        config: What it has read; the defaults until it has said so.
        state: What its worker is doing.
        tasks_ended: How many handlers have come to an end.
        leaving: It is to be replaced, and not to be started again after a crash.
    """

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.worker_id = ""
        self.config = WorkerConfig()
        self.state = "importing"
        self.tasks_ended = 0
        self.memory_bytes = 0
        self.leaving = False
        self.introduced = asyncio.Event()
        self.ready = asyncio.Event()
        self._process = process
        self._writer = writer
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._ids = itertools.count()
        self._listening: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"process {self.number} ({self.worker_id or f'pid {self.pid}'})"

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, number: int, processes: int, *, url: str | None, shows: bool) -> Child:
        """Start a fresh interpreter; never a copy of this one."""
        ours, theirs = socket.socketpair()
        with theirs:
            place = Place(
                descriptor=theirs.fileno(),
                process=number,
                processes=processes,
                url=url,
                shows=shows,
            )
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dagnats_worker",
                *sys.argv[1:],
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C reaches the group of a terminal: it is for the supervisor alone.
                process_group=0,
                env={**os.environ, VARIABLE: place.variable()},
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES_MAX)
        child = cls(number, process, writer)
        child._listening = asyncio.create_task(child._listen(reader))
        return child

    # ------------------------------------------------------------------ what it says

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.readline():
                self._heard(json.loads(data))
        except OSError as error:
            logger.debug("the link to %s: %s", self, error)
        except ValueError:
            logger.exception("%s says what cannot be read, and is not listened to any more", self)

    def _heard(self, line: Line) -> None:
        match line["kind"]:
            case "hello":
                self.worker_id = line["worker_id"]
                self.config = config_heard(line["config"])
                self.introduced.set()
            case "state":
                self.state = line["state"]
                self.tasks_ended, self.memory_bytes = line["ended"], line["memory"]
                if self.state in HAVE_STARTED:
                    self.ready.set()
            case "answer":
                asked = self._asked.get(line["id"])
                if asked is not None and not asked.done():
                    asked.set_result(Answer(response_heard(line), line["merge"]))
            case kind:
                logger.debug("%s says %r", self, kind)

    async def ask(self, path: str) -> Answer | None:
        """What it answers for a path; None where it says nothing in time."""
        number = next(self._ids)
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                self._say({"kind": "ask", "id": number, "path": path})
                return await asked
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    # ------------------------------------------------------------------ its end

    def drain(self, within: timedelta | None = None) -> None:
        """Let it end by itself; ``within`` is for its handlers, else ``drain_timeout``."""
        within_s = None if within is None else within.total_seconds()
        self._say({"kind": "drain", "within_s": within_s})

    def force(self) -> None:
        """Have it cut off what runs."""
        self._say({"kind": "force"})

    def kill(self) -> None:
        """End it without asking; its tasks come again after their leases."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def ended(self) -> int:
        """Its exit code; negative for a signal."""
        code = await self._process.wait()
        if self._listening is not None:
            self._listening.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return code

    async def end(self, within: timedelta | None = None) -> int:
        """Drain, then force, then kill; returns the exit code.

        Args:
            within: As for ``drain``.
        """
        self.drain(within)
        handlers_s = (within or self.config.drain_timeout).total_seconds()
        if not await self.ended_within(handlers_s + CLOSING_MAX_S):
            logger.error("%s has not ended in time; its handlers are cut off", self)
            self.force()
            if not await self.ended_within(KILLED_WITHIN_S):
                logger.error("%s does not end, and is killed", self)
                self.kill()
        return await self.ended()

    async def ended_within(self, limit_s: float) -> bool:
        """Whether it has ended by then."""
        ending = asyncio.ensure_future(self._process.wait())
        done, _ = await asyncio.wait({ending}, timeout=limit_s)
        ending.cancel()
        return bool(done)

    async def reaches(self, event: asyncio.Event) -> bool:
        """Wait for ``introduced`` or ``ready``; False when it has ended before."""
        reached = asyncio.create_task(event.wait())
        ending = asyncio.create_task(self._process.wait())
        await asyncio.wait({reached, ending}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        ending.cancel()
        return event.is_set()

    def _say(self, line: Line) -> None:
        if not self._writer.is_closing():
            self._writer.write(encoded(line))


def described_end(code: int) -> str:
    """An exit code for people."""
    if code >= 0:
        return f"has ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
