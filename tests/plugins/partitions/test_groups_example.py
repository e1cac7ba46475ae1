"""The example of the library does what it says.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "partition_groups.py"
OUTPUT = """\
made: nobody nobody nobody nobody
three members: worker-1 worker-2 worker-3 worker-1
one is dead: worker-1 worker-1 worker-3 worker-3
another number of partitions is another group
deleted, 0 messages lost
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == OUTPUT
