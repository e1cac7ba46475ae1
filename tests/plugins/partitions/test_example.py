"""The example of the plugin does what it says.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "partitions.py"
OUTPUT = """\
partitions: anna anna anna anna bert bert bert bert
order-1: pick pack post at anna
order-2: pick pack post at anna
order-3: pick pack post at bert
partitions: anna anna anna anna anna anna anna anna
order-4: pick pack post at anna
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == OUTPUT
