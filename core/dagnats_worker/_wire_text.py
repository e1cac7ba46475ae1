"""Text as the wire wants it: times, and error texts that no reader chokes on."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from dagnats_worker.errors import DecodeError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = _EPOCH.toordinal()
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d+))?"
    r"(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_REPLACED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


@lru_cache(maxsize=8)
def _second_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]


def time_text(unix_ns: int) -> str:
    """A time as Go writes it: UTC, up to nine digits of fraction without trailing zeros.

    Args:
        unix_ns: Nanoseconds since the epoch, in the years 1 to 9999.
    """
    second, fraction = divmod(unix_ns, 1_000_000_000)
    if not fraction:
        return _second_text(second) + "Z"
    text = f"{_second_text(second)}.{fraction:09d}"
    return (text if fraction % 10 else text.rstrip("0")) + "Z"


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch, of a time with any offset; digits after the ninth are dropped.

    Raises:
        DecodeError: Not RFC 3339.
    """
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError("expected a form such as 2026-08-06T12:00:00.123Z")
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError as error:
        raise DecodeError(f"{text!r} is not an RFC 3339 time: {error}") from error
    fraction, sign, offset_hour, offset_minute = match.groups()[6:]
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second
    if sign:
        offset = int(offset_hour) * 3600 + int(offset_minute) * 60
        seconds += offset if sign == "-" else -offset
    return seconds * 1_000_000_000 + int((fraction or "0")[:9].ljust(9, "0"))


def clean_text(text: str, bytes_max: int) -> str:
    """Text that survives the engine, in at most so many bytes of UTF-8.

    The engine quotes error texts with Go's own escapes. Those of control characters, and of what Go
    cannot print beyond U+FFFF, are not JSON, and the step that was to get the text is never sent.

    Source: wire protocol, section 3.4; Go strconv.Quote.
    """
    text = _REPLACED.sub("\ufffd", text[:bytes_max])
    text = _ASTRAL.sub(_printable, text)
    return text.encode()[:bytes_max].decode(errors="ignore")


def one_line(text: str, bytes_max: int) -> str:
    """The same for a header value or a reason: without line breaks."""
    return clean_text(" ".join(text[:bytes_max].split()), bytes_max)


def _printable(character: re.Match[str]) -> str:
    return character.group() if character.group().isprintable() else "\ufffd"
