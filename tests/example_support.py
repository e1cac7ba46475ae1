"""Running an example as its reader does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cli_support import environment

BOUND_S = 120


def printed(program: Path) -> str:
    """All that a program prints; it ends well, and without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        env=environment(PYTHONIOENCODING="utf-8"),
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
