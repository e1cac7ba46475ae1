"""What a handler may do wrong with signals, and what it is told when none comes."""

from __future__ import annotations

from datetime import timedelta

from dagnats_worker.errors import SignalTimeoutError, UsageError

SECONDS_OF = {"h": 3600, "m": 60}
MILLISECOND_US = 1000
SECOND_US = 1_000_000


class SignalUsageError(UsageError, ValueError):
    """A name, a time or an amount of data with which no signal can work; no retry can help."""


def timed_out(name: str, timeout: timedelta) -> SignalTimeoutError:
    """What a wait ends with whose time is over; the text is that of a Go worker."""
    return SignalTimeoutError(f'signal "{name}" timed out after {_go_text(timeout)}')


def _go_text(duration: timedelta) -> str:
    """A duration as Go writes it: ``500ms``, ``1.5s``, ``1h0m0s``."""
    left_us = duration // timedelta(microseconds=1)
    if left_us < MILLISECOND_US:
        return f"{left_us}µs"
    if left_us < SECOND_US:
        return f"{_plain(left_us, MILLISECOND_US)}ms"
    text = ""
    for unit, seconds in SECONDS_OF.items():
        count, left_us = divmod(left_us, seconds * SECOND_US)
        text += f"{count}{unit}" if count or text else ""
    return f"{text}{_plain(left_us, SECOND_US)}s"


def _plain(count_us: int, unit_us: int) -> str:
    whole, rest = divmod(count_us, unit_us)
    digits = len(str(unit_us)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".")
