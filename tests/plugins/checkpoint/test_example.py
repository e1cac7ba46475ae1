"""The example does what it says.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "checkpoint.py"
OUTPUT = """\
begins at row 0
  one
  two
killed by signal 9
begins at row 2
  three
  four
pauses for a review
begins at row 4
4 rows, reviewed
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == OUTPUT
