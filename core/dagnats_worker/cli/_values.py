"""Values on the command line that are more than a text; each function reads one, or refuses it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import click

from dagnats_worker._config import parse_address
from dagnats_worker._durations import parse_duration
from dagnats_worker._naming import check_token
from dagnats_worker._protocol import RUN_ID_CHARS_MAX, is_subject_token


def duration(text: str) -> timedelta:
    """Such as ``500ms``, ``30s``, ``5m``; longer than zero."""
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not value:
        raise click.BadParameter(f"{text!r} is no time at all; give a longer one")
    return value


SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20}
SIZE_UNITS |= {"GiB": 2**30}

_size = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


def size(text: str) -> int:
    """Such as ``512MB`` or ``1.5GiB``, in bytes; larger than zero."""
    found = _size.fullmatch(text.strip())
    units = {name.lower(): factor for name, factor in SIZE_UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise click.BadParameter(
            f"{text!r} is no size; write a number with one of {', '.join(SIZE_UNITS)}"
        )
    value = int(float(found[1]) * units[found[2].lower()])
    if not value:
        raise click.BadParameter(f"{text!r} is nothing at all; give a larger one")
    return value


def format_size(number: int) -> str:
    """Bytes as megabytes, for people."""
    return f"{number / SIZE_UNITS['MB']:.0f} MB"


def address(text: str) -> str:
    """``HOST:PORT``."""
    try:
        parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


def token(kind: str) -> Callable[[str], str]:
    """A task type or a group: what can be part of a NATS subject."""

    def read(text: str) -> str:
        try:
            check_token(kind, text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        return text

    return read


def run_id(text: str) -> str:
    """A single token of a NATS subject."""
    if not is_subject_token(text) or len(text) > RUN_ID_CHARS_MAX:
        raise click.BadParameter(
            f"{text[:RUN_ID_CHARS_MAX]!r} is not a run id: at most {RUN_ID_CHARS_MAX} characters, "
            "without dots, spaces, '*' and '>'"
        )
    return text


def header(text: str) -> tuple[str, str]:
    """``name=value``, for a NATS message."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not a header; write name=value")
    if not (name.isascii() and name.isprintable()) or any(mark in name for mark in ": "):
        raise click.BadParameter(f"{name!r} cannot be a header's name: no spaces, no colons")
    if "\n" in value or "\r" in value:
        raise click.BadParameter(f"the header {name!r} has more than one line")
    return name, value
