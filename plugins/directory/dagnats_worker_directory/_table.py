"""Tables that fit: columns that matter less are left out where the terminal is narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import Console
from rich.text import Text

T = TypeVar("T")

GAP = 2


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column of a table of ``T``.

    Attributes:
        heading: An empty column is left out altogether.
        cell: What stands in it.
        rank: Columns with a higher one are left out first; those of rank 0 never are.
        width_max: On a terminal, what is longer is cut; 0 for never.
        width_min: Before it is left out it is cut, but not to less than this; 0 for never.
    """

    heading: str
    cell: Callable[[T], Text]
    rank: int = 0
    width_max: int = 0
    width_min: int = 0


def table(columns: Sequence[Column[T]], rows: Sequence[T], *, width: int | None) -> list[Text]:
    """The lines of a table, headings first.

    Args:
        width: Of the terminal, in cells; None where there is none, and nothing is cut then.
    """
    filled: list[tuple[Column[T], list[Text]]] = []
    for column in columns:
        cells = [column.cell(row) for row in rows]
        if column.width_max and width is not None:
            for cell in cells:
                cut(cell, column.width_max)
        if any(cells):
            filled.append((column, cells))
    shown = filled if width is None else _that_fit(filled, width)
    widths = [_width(*one) for one in shown]
    lines = [_line([Text(column.heading, "bold") for column, _ in shown], widths)]
    lines += [
        _line(list(cells), widths) for cells in zip(*(cells for _, cells in shown), strict=True)
    ]
    return lines if width is None else [cut(line, width) for line in lines]


def tell(console: Console, lines: Sequence[Text]) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def plain(text: str) -> str:
    """Text from anywhere, without what would steer a terminal."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def cut(text: Text, width: int) -> Text:
    """The same text, in place no longer than that."""
    if text.cell_len > width:
        text.truncate(width, overflow="ellipsis")
    return text


def _that_fit(
    filled: list[tuple[Column[T], list[Text]]], width: int
) -> list[tuple[Column[T], list[Text]]]:
    """Leave out columns, the least important first, until the rest has room."""
    shown = list(filled)
    while (missing := sum(_width(*one) + GAP for one in shown) - GAP - width) > 0:
        last = max(shown, key=lambda one: one[0].rank)
        room = _width(*last) - missing
        if last[0].width_min and room >= last[0].width_min:
            for cell in last[1]:
                cut(cell, room)
        elif last[0].rank:
            shown.remove(last)
        else:
            break
    return shown


def _width(column: Column[T], cells: list[Text]) -> int:
    return max(len(column.heading), *(cell.cell_len for cell in cells))


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        line.append_text(cell)
        line.append(" " * (width - cell.cell_len + GAP))
    line.rstrip()
    return line


def console_for() -> Console:
    """The console of the standard output, as it is at this moment."""
    return Console(highlight=False, emoji=False, markup=False)
