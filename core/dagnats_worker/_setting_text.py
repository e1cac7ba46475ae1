"""A setting as text that reads back as the same setting: for people, and for tests of plugins."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

UNITS_US = (
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
)


def setting_text(value: Any) -> str:
    """How a value is written on the command line and in the environment; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, enum.Enum):
        return setting_text(value.value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}={setting_text(one)}" for key, one in value.items())
    if isinstance(value, set | frozenset):
        return ",".join(sorted(map(setting_text, value)))
    if isinstance(value, list | tuple):
        return ",".join(map(setting_text, value))
    return str(value)


def duration_text(duration: timedelta) -> str:
    """The shortest exact text: ``90s``, ``2h``, ``500ms``."""
    whole_us = duration // timedelta(microseconds=1)
    unit, size_us = next((unit, us) for unit, us in UNITS_US if whole_us % us == 0)
    return f"{whole_us // size_us}{unit}" if whole_us else "0s"
