"""Plain output of commands: blocks of a title and a few labelled lines."""

from __future__ import annotations

import os
from collections.abc import Iterable

import click


def tell_block(title: str, rows: Iterable[tuple[str, str]], *, err: bool = False) -> None:
    """Print a title, and below it one line per label and text."""
    rows = list(rows)
    width = max(len(label) for label, _ in rows)
    lines = [click.style(title, bold=True)]
    lines += [f"  {click.style(label.ljust(width), fg='cyan')}  {text}" for label, text in rows]
    tell("\n".join(lines), err=err)


def tell(text: str, *, err: bool = False) -> None:
    """Print; styles are left out where ``NO_COLOR`` is set or where there is no terminal."""
    click.echo(text, err=err, color=False if os.environ.get("NO_COLOR") else None)


def dim(text: str) -> str:
    """Text that matters less."""
    return click.style(text, dim=True)


def listed(names: Iterable[str], at_most: int) -> str:
    """Names with commas; those that are too many are only counted."""
    names = list(names)
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"
