"""A worker's process that a supervisor has started: it answers, says how it is, and is told to end.

All of it is done by a thread with a loop of its own, because a handler may block the worker's loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from dagnats_worker._health import LIVE, READY
from dagnats_worker._http import json_response, not_found
from dagnats_worker._loop_thread import LoopThread
from dagnats_worker._routes import Response
from dagnats_worker._serve import EXIT_CLEAN, StopRequest
from dagnats_worker._worker import Worker
from dagnats_worker.cli._link import (
    LINE_BYTES_MAX,
    PAGE_BYTES_MAX,
    Line,
    Place,
    config_told,
    encoded,
    response_told,
)

logger = logging.getLogger("dagnats_worker.supervisor")

TELL_EVERY_S = 0.5
TELL_START_EVERY_S = 0.1


@contextmanager
def supervised(place: Place, request: StopRequest) -> Iterator[Supervised]:
    """Be a process of the supervisor for as long as the block lasts."""
    link = socket.socket(fileno=place.descriptor)
    link.set_inheritable(False)
    thread = LoopThread("dagnats-worker-supervised")
    process = Supervised(request)
    talking = thread.begin(process.talk(link))
    try:
        yield process
    finally:
        talking.cancel()
        thread.close()


class Supervised:
    """The process as its supervisor sees it.

    Attributes:
        worker: Once it has been imported.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._answering: set[asyncio.Task[None]] = set()
        self.worker: Worker | None = None

    async def talk(self, link: socket.socket) -> None:
        """Listen until the supervisor is gone, and then stop."""
        reader, writer = await asyncio.open_unix_connection(sock=link, limit=LINE_BYTES_MAX)
        telling = asyncio.create_task(self._tell(writer))
        try:
            while data := await reader.readline():
                self._heard(json.loads(data), writer)
        except OSError as error:
            logger.debug("the link to the supervisor: %s", error)
        finally:
            telling.cancel()
            writer.close()
        logger.error("the supervisor of this process has ended; stopping")
        self._end_while_importing()
        self._request.ask()

    def _heard(self, line: Line, writer: asyncio.StreamWriter) -> None:
        match line["kind"]:
            case "ask":
                task = asyncio.create_task(self._answer(line, writer))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case "drain":
                self._end_while_importing()
                within_s = line["within_s"]
                self._request.ask(None if within_s is None else timedelta(seconds=within_s))
            case "force":
                self._end_while_importing()
                self._request.force()
            case kind:
                logger.debug("the supervisor says %r", kind)

    def _end_while_importing(self) -> None:
        """A module may take minutes to import, nothing can interrupt it, and nothing is lost."""
        if self.worker is None:
            logging.shutdown()
            os._exit(EXIT_CLEAN)

    async def _answer(self, line: Line, writer: asyncio.StreamWriter) -> None:
        path = line["path"]
        response = await self._page(path)
        route = self.worker.health.route(path) if self.worker is not None else None
        merge = route.merge if route is not None else ""
        answer = {"kind": "answer", "id": line["id"], "merge": merge, **response_told(response)}
        await _send(writer, answer)

    async def _page(self, path: str) -> Response:
        if self.worker is not None:
            response = await self.worker.health.answer(path)
            if len(response.body) > PAGE_BYTES_MAX:
                error = f"{path} has {len(response.body)} bytes, and {PAGE_BYTES_MAX} is the most"
                return json_response(500, {"error": error})
            return response
        if path == LIVE:
            return json_response(200, {"status": "alive", "state": "importing", "reasons": []})
        if path == READY:
            reasons = ["the module is being imported"]
            return json_response(503, {"status": "not ready", "reasons": reasons})
        return not_found(path, [LIVE, READY])

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        introduced = False
        while True:
            worker = self.worker
            if worker is not None and not introduced:
                introduced = True
                config = config_told(worker.config)
                hello = {"kind": "hello", "worker_id": worker.worker_id, "config": config}
                await _send(writer, hello)
            state = worker.health.state if worker is not None else "importing"
            ended = worker.health.tasks_ended() if worker is not None else 0
            line = {"kind": "state", "state": state, "ended": ended, "memory": memory_bytes()}
            await _send(writer, line)
            await asyncio.sleep(TELL_EVERY_S if state == "running" else TELL_START_EVERY_S)


async def _send(writer: asyncio.StreamWriter, line: Line) -> None:
    try:
        writer.write(encoded(line))
        await writer.drain()
    except OSError:
        logger.debug("the supervisor takes nothing any more")


def memory_bytes() -> int:
    """The memory of this process; on systems without ``/proc`` the most that it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        import resource  # noqa: PLC0415 - not everywhere

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
