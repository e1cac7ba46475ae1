"""The worked example: an agent that checkpoints, waits for a human, and loses two workers.

Method: the example as its reader runs it, and its whole output. Real: the program, its server, its
workers and the signals that kill them. Fake: the human, and the model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from example_support import printed

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("server_installed")]

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "agent.py"

OUTPUT = """\
worker 1: turn 0: plans to read 3 sources
worker 1: turn 1: has read the minutes
worker 1 is killed
worker 2: turn 1: has read the letters
worker 2: turn 1: has read the accounts
worker 2: turn 2: asks a human
worker 2 is killed, and nobody waits any more
a human answers
worker 3: turn 2: asks a human
Who paid for the bridge? After 3 sources: the guild of millers
"""


def test_agent_that_loses_its_workers_finishes() -> None:
    assert printed(EXAMPLE) == OUTPUT
