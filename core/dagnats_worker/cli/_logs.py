"""What a process that the command line runs writes as its log."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any, Literal

import click

LogFormat = Literal["text", "json"]

TASK_FIELDS = ("task_type", "run_id", "step_id", "attempt")
TRACE_FIELDS = ("trace_id", "span_id")
"""Put onto records by a plugin, where there is one that does."""
LEVEL_COLORS = {"DEBUG": "bright_black", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def configure_logging(
    level: str | None, log_format: LogFormat | None, process: int | None = None
) -> None:
    """Write the log to stderr; what the user's module has configured stands unless asked otherwise.

    Args:
        level: None is ``info``, where nothing is configured.
        log_format: None is ``text``, where nothing is configured.
        process: Which one of several this is; it is part of each line.
    """
    root = logging.getLogger()
    if level is None and log_format is None and root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    logging.basicConfig(handlers=[handler], level=(level or "info").upper(), force=True)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, what, and of a task which one."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = "" if process is None else f"[{process}] "
        self._colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():<7} "
        message = record.getMessage()
        line = f"{clock}.{int(record.msecs):03d} {level}{self._process}{message}"
        fields = _fields(record, TASK_FIELDS)
        if fields and str(fields.get("run_id")) not in message:
            line += "  " + " ".join(f"{name}={value}" for name, value in fields.items())
        if not record.name.startswith("dagnats_worker"):
            line += f"  [{record.name}]"
        color = LEVEL_COLORS.get(record.levelname)
        if self._colored and color:
            line = click.style(line, fg=color)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for machines."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **_fields(record, TASK_FIELDS + TRACE_FIELDS),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the fields that the record has, and that say something."""
    values = {name: getattr(record, name, None) for name in names}
    return {name: value for name, value in values.items() if value not in (None, "")}
