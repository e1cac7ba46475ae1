"""The example does what it says.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "directory.py"
OUTPUT = """\
joined: worker-oslo
joined: worker-rome
worker-oslo 2026.8: greet, 0 of 64 slots, oslo
worker-rome 2026.8: greet, 0 of 64 slots, rome
left: worker-rome
left: worker-oslo
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == OUTPUT
