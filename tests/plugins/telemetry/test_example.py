"""The example draws one trace, and the pages show what it draws.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

PROJECT = Path(__file__).parents[3]
EXAMPLE = PROJECT / "examples" / "plugins" / "telemetry.py"
TREE = """\
checkout
└─ enqueueTask order
   └─ executeTask order
      ├─ reserve the item
      ├─ enqueueTask ship
      │  └─ executeTask ship
      │     ├─ print the label
      │     └─ worker.complete
      └─ worker.complete
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == f"label of lamp\ntraces: 1\n{TREE}"


def test_page_shows_what_the_example_draws() -> None:
    assert TREE in (PROJECT / "docs" / "plugins" / "telemetry.md").read_text("utf-8")
