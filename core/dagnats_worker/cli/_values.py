"""Values on the command line that are more than a text; each function reads one, or refuses it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import click

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
