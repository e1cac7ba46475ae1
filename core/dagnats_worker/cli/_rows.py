"""A table of rows that are all known, cut to what fits the terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

import click

from dagnats_worker.cli._screen import tell

GAP = "  "
LAST_WIDTH_MIN = 16
ELLIPSIS = "…"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tab and newline: a terminal obeys them, and whoever submits a task could send them."""


def tell_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their headings; the last column takes what is left of the terminal."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    if sys.stdout.isatty():
        others = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
        room = shutil.get_terminal_size().columns - others
        widths[-1] = min(widths[-1], max(LAST_WIDTH_MIN, room))
    tell(click.style(_line(headings, widths), dim=True))
    for row in rows:
        tell(_line(row, widths))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = [cut(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return GAP.join(parts).rstrip()


def cut(text: str, width: int) -> str:
    """One line of a text, shortened where it is too long."""
    text = one_line(text)
    return text if len(text) <= width else text[: width - 1] + ELLIPSIS


def one_line(text: str) -> str:
    """A text of somebody else as one line that a terminal only shows."""
    return harmless(" ".join(text.split()))


def harmless(text: str) -> str:
    """A text of somebody else, with its control characters written out."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
