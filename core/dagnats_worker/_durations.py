"""Durations as people write them: ``500ms``, ``30s``, ``1h30m``."""

from __future__ import annotations

import re
from datetime import timedelta

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION_TEXT_MAX = 64

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def parse_duration(text: str) -> timedelta:
    """Read a duration: one or more numbers, each with its unit.

    Raises:
        ValueError: Not a duration; says how one is written.
    """
    text = text.strip()
    if len(text) > DURATION_TEXT_MAX or not _WHOLE.fullmatch(text):
        if _NUMBER.fullmatch(text):
            raise ValueError(
                f"{text!r} has no unit; write {text}s for seconds, {text}m for minutes"
            )
        shown = text[:DURATION_TEXT_MAX]
        raise ValueError(
            f"{shown!r} is not a duration; write numbers with units, such as 500ms, 30s, 1h30m"
        )
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in _PART.findall(text))
    try:
        return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError(f"{text!r} is longer than a duration can be") from error


def format_duration(duration: timedelta) -> str:
    """A duration for people: ``12 ms``, ``1.4 s``, ``2 m 5 s``, ``3 h 10 m``."""
    seconds = duration.total_seconds()
    if seconds < 0.9995:  # noqa: PLR2004 - from here on it would be 1000 ms
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:  # noqa: PLR2004 - from here on tenths matter only where there are some
        return f"{seconds:.1f} s"
    if seconds < 59.95:  # noqa: PLR2004 - from here on it would be 60.0 s
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes} m {rest} s"
    return f"{minutes // 60} h {minutes % 60} m"
