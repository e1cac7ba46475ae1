"""What a supervisor and the processes that it has started say to each other: lines of JSON.

They speak over a pair of sockets that only the two of them have, so nobody else can join in; and
when one of them dies, however it dies, the other one reads an end of file.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any

from dagnats_worker._config import WorkerConfig
from dagnats_worker._routes import Response

VARIABLE = "DAGNATS_WORKER_SUPERVISED"
PAGE_BYTES_MAX = 8 * 1024 * 1024
LINE_BYTES_MAX = 2 * PAGE_BYTES_MAX
"""A page in base64, and what is said of it."""

Line = dict[str, Any]

_told = (
    "health",
    "drain_timeout",
    "restart_wait",
    "restart_wait_max",
    "crash_window",
    "crashes_max",
    "recycle_timeout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a process is told at its start, in a variable of its environment.

    Attributes:
        descriptor: Of its end of the sockets.
        process: Its number, which no other process has at the same time.
        processes: How many there are.
        url: Of the server that the supervisor has started; None where it has started none.
        shows: It is the one that says on the terminal what runs.
    """

    descriptor: int
    process: int
    processes: int
    url: str | None
    shows: bool

    def variable(self) -> str:
        """The value of the variable."""
        return json.dumps(asdict(self))


def taken_place() -> Place | None:
    """The place of this process, if a supervisor has started it.

    The variable is removed, so that what this process starts is not taken for a child of the
    supervisor, too.
    """
    text = os.environ.pop(VARIABLE, None)
    return None if text is None else Place(**json.loads(text))


def encoded(line: Line) -> bytes:
    """One line."""
    return json.dumps(line).encode() + b"\n"


def config_told(config: WorkerConfig) -> Line:
    """What a supervisor has to know of the configuration that its processes have read."""
    told = {name: getattr(config, name) for name in _told}
    return {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in told.items()
    }


def config_heard(told: Line) -> WorkerConfig:
    """The same as a configuration; everything else in it is the default."""
    durations = {one.name for one in fields(WorkerConfig) if one.type == "timedelta"}
    changes: dict[str, Any] = {
        name: timedelta(seconds=value) if name in durations else value
        for name, value in told.items()
    }
    return replace(WorkerConfig(), **changes)


def response_told(response: Response) -> Line:
    """A page, as part of a line."""
    return {
        "status": response.status,
        "content_type": response.content_type,
        "body": b64encode(response.body).decode(),
    }


def response_heard(line: Line) -> Response:
    """The page again."""
    return Response(line["status"], line["content_type"], b64decode(line["body"]))
