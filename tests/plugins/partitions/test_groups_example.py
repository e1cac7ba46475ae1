"""The example of the library does what it says.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import environment

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
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == OUTPUT
