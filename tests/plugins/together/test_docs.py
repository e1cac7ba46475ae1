"""The programs that pages about plugins show print what the pages say.

Method: each program as its reader runs it, and its whole output. Real: the programs and their
servers. Fake: nothing.
"""

from __future__ import annotations

import re

import pytest
from docs_pages import DOCS, ROOT, Block, all_blocks
from example_support import printed

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

FOLDER = "examples/plugins/"
PROGRAMS = [
    block for block in all_blocks() if block.attributes.get("output", "").startswith(FOLDER)
]


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.where)
def test_program_prints_what_the_page_shows(block: Block) -> None:
    output = printed(ROOT / block.attributes["output"])
    parts = (re.escape(part) for part in block.text.split("..."))
    assert re.fullmatch(".*".join(parts), output), output


def test_every_plugin_has_a_page_that_shows_its_example() -> None:
    names = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    shown = {
        (block.page.stem, path)
        for block in all_blocks()
        for mark in ("title", "excerpt")
        if (path := block.attributes.get(mark, "")).startswith(FOLDER)
    }
    assert {(name, f"{FOLDER}{name}.py") for name in names} <= shown
    assert all((DOCS / "plugins" / f"{name}.md").exists() for name in names)
