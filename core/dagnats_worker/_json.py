"""JSON at the edge of the process: what users hand over becomes bytes, and bytes become values.

msgspec does the work. Added here is what it lets pass and what a Go program could not read: numbers
that are not finite, raw bytes that are not JSON, and errors that do not say where.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from dagnats_worker.errors import DecodeError, UsageError

NULL = b"null"

_JSON_ALREADY = (bytes, bytearray, memoryview, msgspec.Raw)
_SEQUENCES = (list, tuple, set, frozenset)

PATH_DEPTH_MAX = 32
"""How deep an error message looks for its culprit."""


def encode(value: Any) -> bytes:
    """Write a value as compact JSON.

    Args:
        value: Anything msgspec can encode, or a pydantic model. Bytes mean JSON already: they are
            validated and come back as they are.

    Raises:
        UsageError: The value, or something inside it, is not JSON.
    """
    if isinstance(value, _JSON_ALREADY):
        return _checked(bytes(value), "bytes are taken as JSON and these are not")
    try:
        data = _ENCODE(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(_explain(value, error)) from error
    # msgspec writes NaN and the infinities as null, so without a null there is nothing to look for.
    if NULL in data and value is not None:
        _refuse_non_finite(value)
    return data


def encode_value(value: Any) -> bytes:
    """Write what is stored or streamed: bytes as they are, JSON or not, and all else as JSON.

    Raises:
        UsageError: The value, or something inside it, is not JSON.
    """
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else encode(value)


def decode(data: bytes) -> Any:
    """Read any JSON document.

    Raises:
        DecodeError: Not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return _DECODE(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not valid JSON: {error}") from error


def _encode_foreign(value: Any) -> Any:
    # Duck-typed, so that pydantic is imported by those who use it and by nobody else.
    dump = getattr(value, "model_dump_json", None)
    if dump is None or isinstance(value, type):
        raise TypeError(f"objects of type {type(value).__qualname__} cannot be JSON")
    data = _checked(dump().encode(), f"{type(value).__qualname__}.model_dump_json() wrote no JSON")
    if NULL in data and not _all_finite(value.model_dump()):
        raise ValueError("JSON has no NaN and no infinity")
    return msgspec.Raw(data)


_ENCODE = msgspec.json.Encoder(enc_hook=_encode_foreign).encode
_DECODE = msgspec.json.Decoder().decode
_SKIM = msgspec.json.Decoder(msgspec.Raw).decode


def _checked(data: bytes, complaint: str) -> bytes:
    try:
        _SKIM(data)
        if not data.isascii():
            data.decode()  # msgspec does not look inside the strings that it skips
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{complaint}: {error}") from error
    return data


def _refuse_non_finite(value: Any) -> None:
    # Whatever needs the hook was checked by the hook while it was encoded.
    if not _all_finite(msgspec.to_builtins(value, str_keys=True, enc_hook=_nothing)):
        raise UsageError(_explain(value, ValueError("JSON has no NaN and no infinity")))


def _nothing(_: Any) -> None:
    return None


def _all_finite(value: Any) -> bool:
    items = [value]
    for item in items:  # grows while it is walked
        if isinstance(item, float):
            if not math.isfinite(item):
                return False
        elif isinstance(item, dict):
            items += item.values()
        elif isinstance(item, _SEQUENCES):
            items += item
    return True


def _explain(value: Any, error: Exception) -> str:
    path = _culprit(value, "$", PATH_DEPTH_MAX)
    return f"a value cannot be JSON{f', at {path}' if path else ''}: {error}"


def _culprit(value: Any, path: str, depth: int) -> str | None:
    """The path of the first thing, depth first, that does not encode by itself."""
    children = list(_children(value))
    if not children:
        return None if _encodes(value) else path
    if depth == 0:
        return None
    for key in value if isinstance(value, dict) else ():
        if not _encodes({key: None}):
            return f"{path}, in key {key!r}"
    for step, child in children:
        if found := _culprit(child, path + step, depth - 1):
            return found
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"[{key!r}]", child
    elif isinstance(value, _SEQUENCES):
        for index, child in enumerate(value):
            yield f"[{index}]", child
    elif not isinstance(value, type):
        names = getattr(value, "__struct_fields__", ()) or getattr(
            value, "__dataclass_fields__", ()
        )
        for name in names:
            yield f".{name}", getattr(value, name, None)


def _encodes(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    try:
        _ENCODE(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UsageError):
        return False
    return True
