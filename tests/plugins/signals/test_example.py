"""The example does what it says.

Method: the example as its reader runs it, and its whole output. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "signals.py"
OUTPUT = """\
On looms: who reads it?
On looms: Ada reads it
not published: signal "approved" timed out after 200ms
pay 42: begins
pay: parked
nobody works, and the payment waits
pay 42: begins
paid 42, approved by Ada
"""


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == OUTPUT
