"""What the directory knows of one worker, and its exact form in the bucket."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dagnats_worker.errors import DecodeError
from dagnats_worker_directory._report import Report

ZERO_TIME = "0001-01-01T00:00:00Z"
INTEGER_MAX = 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SHOWN_MAX = 80

_time = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_escaped = re.compile("[<>&\u2028\u2029]")
_surrogate = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class WorkerRegistration:
    """A worker as the directory lists it, whatever language it is written in.

    Attributes:
        worker_id: Its key in the bucket.
        task_types: What it serves.
        language: ``python``, ``go`` ...
        transport: ``nats``, but for workers behind a bridge.
        max_tasks: How many tasks it runs at once.
        metadata: Whatever else is known; ``report`` reads what Python workers put there.
        pid: Of its process; 0 where nobody knows.
        hostname: Empty where nobody knows.
        version: Of the worker's program.
        last_seen: When the entry was written, by the clock of the worker, as RFC 3339;
            ``last_seen_at`` reads it.
    """

    worker_id: str
    task_types: tuple[str, ...] = ()
    language: str = "python"
    transport: str = "nats"
    max_tasks: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    hostname: str = ""
    version: str = ""
    last_seen: str = ZERO_TIME

    @property
    def last_seen_at(self) -> datetime:
        """``last_seen``, to the microsecond."""
        return parse_time(self.last_seen)

    @property
    def report(self) -> Report:
        """What the worker says of itself in ``metadata``; empty for workers that do not."""
        return Report.from_metadata(self.metadata)

    def encode(self) -> bytes:
        """The entry, byte for byte as a Go worker would write it."""
        entry: dict[str, Any] = {
            "worker_id": self.worker_id,
            "task_types": list(self.task_types),
            "language": self.language,
            "transport": self.transport,
            "max_tasks": self.max_tasks,
        }
        if self.metadata:
            # Go sorts by bytes, which is the order of code points.
            entry["metadata"] = {name: self.metadata[name] for name in sorted(self.metadata)}
        optional = {"pid": self.pid, "hostname": self.hostname, "version": self.version}
        entry |= {name: value for name, value in optional.items() if value}
        entry["last_seen"] = self.last_seen
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        text = _surrogate.sub("\ufffd", text)
        return _escaped.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()

    @classmethod
    def decode(cls, data: bytes) -> WorkerRegistration:
        """Read an entry as Go does: names in any case, the last of two counts, null is nothing.

        Raises:
            DecodeError: Not an entry; the message says why.
        """
        try:
            pairs = json.loads(
                data.decode(errors="replace"),
                object_pairs_hook=_Pairs,
                parse_constant=_refuse_constant,
            )
            if not isinstance(pairs, _Pairs):
                raise DecodeError("not an object")
            return cls(**_fields(pairs))
        except (ValueError, RecursionError, DecodeError) as error:
            shown = data[:SHOWN_MAX].decode(errors="replace")
            raise DecodeError(f"not an entry of the directory: {error}: {shown!r}") from error


# ---------------------------------------------------------------------- times


def time_text(unix_ns: int) -> str:
    """A time as Go writes it: up to nine digits of fraction, without trailing zeros."""
    second, fraction = divmod(unix_ns, 1_000_000_000)
    whole = (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def now_text() -> str:
    """Now, as Go writes it."""
    return time_text(time.time_ns())


def parse_time(text: str) -> datetime:
    """Read a time with any offset, to the microsecond.

    Raises:
        DecodeError: Not RFC 3339.
    """
    found = _time.fullmatch(text)
    try:
        if found is None:
            raise ValueError("expected a form such as 2026-08-06T12:00:00.123Z")
        whole, fraction, offset = found.groups()
        return datetime.fromisoformat(f"{whole}.{(fraction or '0')[:6]:0<6}{offset}")
    except ValueError as error:
        raise DecodeError(f"{text!r} is not an RFC 3339 time: {error}") from error


# ---------------------------------------------------------------------- reading fields


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, with every name that it has, however often."""


def _fields(pairs: _Pairs) -> dict[str, Any]:
    found: dict[str, Any] = {"worker_id": "", "language": "", "transport": ""}
    for written, value in pairs:
        name = written.casefold()
        read = READERS.get(name)
        if read is None:
            continue
        if value is None:
            if name in ("task_types", "metadata"):
                found.pop(name, None)
            continue
        try:
            found[name] = read(value)
        except (TypeError, ValueError) as error:
            raise DecodeError(f"{name} {error}") from error
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"is not a text: {value!r}")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
        raise TypeError(f"is not an integer: {value!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or isinstance(value, _Pairs):
        raise TypeError(f"is not a list: {value!r}")
    return tuple("" if one is None else _text(one) for one in value)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, _Pairs):
        raise TypeError(f"is not an object: {value!r}")
    return {name: "" if one is None else _text(one) for name, one in value}


def _time_as_written(value: Any) -> str:
    text = _text(value)
    try:
        parse_time(text)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


READERS = {
    "worker_id": _text,
    "task_types": _texts,
    "language": _text,
    "transport": _text,
    "max_tasks": _integer,
    "metadata": _metadata,
    "pid": _integer,
    "hostname": _text,
    "version": _text,
    "last_seen": _time_as_written,
}
