"""What a trigger wraps around the data that started a run, and how to take it off again.

Source: dagnats worker/envelope.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from dagnats_worker.errors import NonRetryableError

ENVELOPE_BYTES_MAX = 4 * 1024 * 1024
"""A longer input is never unwrapped."""

ENVELOPE_MEMBERS_MAX = 256
"""How many members of the input are looked at."""

T = TypeVar("T")


class TriggerEnvelope(msgspec.Struct, Generic[T], omit_defaults=True):
    """The input of a run that a trigger started; annotate with the type of ``data`` where known.

    Attributes:
        trigger: ``cron``, ``manual``, ``subject``, ``webhook``, ``http``, or the name of an
            external trigger type.
        source: The trigger's id.
        workflow_id: The name of the workflow.
        timestamp: When it fired.
        data: What it carried; None for ``cron`` and ``manual``.
    """

    trigger: str
    source: str
    workflow_id: str
    timestamp: datetime
    data: T | None = None


class HTTPEnvelope(msgspec.Struct, omit_defaults=True):
    """One HTTP request: the ``data`` of an ``http`` trigger.

    Attributes:
        query: The first value of each key.
        headers: The first value of each, in canonical case such as ``Content-Type``.
        body: As it was sent; base64 on the wire only.
    """

    method: str
    path: str
    query: dict[str, str] = msgspec.field(default_factory=dict)
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    body: bytes = b""


def unwrap_trigger(data: bytes) -> bytes:
    """Give a handler the data of a trigger without the envelope; other input comes back as it is.

    Only the first members are read, and nothing behind them: that is what decides in a Go worker,
    so it decides here.

    Args:
        data: A task's input.

    Raises:
        NonRetryableError: What was read is not JSON.
    """
    if not data or len(data) > ENVELOPE_BYTES_MAX:
        return data
    # With so few colons there are no more members than may be read, so all of them decide.
    if data.count(b":") <= ENVELOPE_MEMBERS_MAX:
        try:
            seen = _peek(data)
        except (ValueError, RecursionError):
            return _scan(data)
        return bytes(seen.data) if seen.data and _fired(bytes(seen.trigger)) else data
    return _scan(data)


class _Peek(msgspec.Struct, gc=False):
    trigger: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


_peek = msgspec.json.Decoder(_Peek).decode


def _fired(trigger: bytes) -> bool:
    return trigger.startswith(b'"') and trigger != b'""'


def _scan(data: bytes) -> bytes:
    triggered, payload = False, None
    try:
        for key, value in _members(data.decode()):
            if key == "trigger":
                triggered = _fired(value.encode())
            elif key == "data":
                payload = value
    except (ValueError, RecursionError) as error:
        raise NonRetryableError(f"detect envelope: {error}") from error
    return payload.encode() if triggered and payload is not None else data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# Values are only stepped over: numbers stay text, so that no literal is too long or too large.
_read_value = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse).raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match


def _members(text: str) -> Iterator[tuple[str, str]]:
    """The first members of an object with their values as written; nothing for any other value."""
    position = _after_space(text, 0)
    if text[position : position + 1] != "{":
        if text[position : position + 1] != "[":
            _read_value(text, position)
        return
    position = _after_space(text, position + 1)
    for index in range(ENVELOPE_MEMBERS_MAX):
        # The end of the text ends the object too, see unwrap_trigger.
        if text[position : position + 1] in ("", "}", "]"):
            return
        if index:
            position = _after_mark(text, position, ",")
        if text[position : position + 1] != '"':
            raise ValueError(f"no key at character {position}")
        key, position = _read_value(text, position)
        start = _after_mark(text, _after_space(text, position), ":")
        _, position = _read_value(text, start)
        yield key, text[start:position]
        position = _after_space(text, position)


def _after_space(text: str, position: int) -> int:
    space = _skip_space(text, position)
    return space.end() if space else position


def _after_mark(text: str, position: int, mark: str) -> int:
    if text[position : position + 1] != mark:
        raise ValueError(f"no {mark!r} at character {position}")
    return _after_space(text, position + 1)
