"""The example does what it says.

Method: the example as its reader runs it, and its whole output. Real: the program and its server.
Fake: nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "singleton.py"

OUTPUT = """\
teller-1 booked 10 times; the balance is 55
teller-1 has stopped
teller-2 booked 10 times; the balance is 110
teller-2 has stopped
teller-3 booked 10 times; the balance is 165
teller-3 has stopped
"""


def test_example_does_what_it_says() -> None:
    assert printed(EXAMPLE) == OUTPUT
