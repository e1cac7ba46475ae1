"""The pages of the documentation, as their tests read them: code blocks, tables, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if "snippets" not in path.parts and (path.name == "README.md" or "changes" not in path.parts)
)
"""What people read; fragments of the changelog are no pages."""

_FENCE = re.compile(r"```(\w*) ?(.*)")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_HEADING = re.compile(r"#{1,6} (.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        attributes: What stands behind the language, such as ``title="path"``.
    """

    page: Path
    line: int
    language: str
    attributes: dict[str, str]
    text: str

    @property
    def where(self) -> str:
        return f"{named(self.page)}:{self.line}"


def named(page: Path) -> str:
    """A page's path, as people write it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    numbers = iter(range(len(lines)))
    for start in numbers:
        fence = _FENCE.fullmatch(lines[start])
        if fence is None:
            continue
        end = next(number for number in numbers if lines[number] == "```")
        text = "\n".join(lines[start + 1 : end]) + "\n"
        yield Block(page, start + 1, fence[1], dict(_ATTRIBUTE.findall(fence[2])), text)


def all_blocks() -> list[Block]:
    """The fenced blocks of every page."""
    return [block for page in PAGES for block in blocks(page)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say behind ``#``."""
    headings = (_HEADING.fullmatch(line) for line in prose(page).splitlines())
    return {
        re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
        for heading in headings
        if heading is not None
    }


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without the row of its titles."""
    below = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    rows: list[list[str]] = []
    for line in below.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            break
    assert rows, f"{named(page)} has no table below {heading!r}"
    return rows[2:]


def code(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)
