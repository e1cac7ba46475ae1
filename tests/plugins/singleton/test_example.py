"""The example does what it says.

Method: the example as its reader runs it, and its whole output. Real: the program and its server.
Fake: nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import environment

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "singleton.py"
BOUND_S = 60

OUTPUT = """\
teller-1 booked 10 times; the balance is 55
teller-1 has stopped
teller-2 booked 10 times; the balance is 110
teller-2 has stopped
teller-3 booked 10 times; the balance is 165
teller-3 has stopped
"""


def test_example_does_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == OUTPUT
