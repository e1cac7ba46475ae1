"""Running the real command: to its end, in the background, or on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-m", "dagnats_worker")
BOUND_S = 30.0
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

CORE = Path(__file__).parent.parent / "core"


def environment(**more: str) -> dict[str, str]:
    """Ours without anything that would change what the command does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NATS_", "DAGNATS_")) and name not in ("NO_COLOR", "COLUMNS")
    }
    return {**kept, "PYTHONPATH": str(CORE), **more}


def run_command(
    *arguments: str, cwd: Path | None = None, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=environment(**variables),
        timeout=BOUND_S,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def one_error_line(done: subprocess.CompletedProcess[str]) -> str:
    """What it said on stderr, where that is one line of an error and nothing else."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    return lines[0]


class Background:
    """A command that runs; its output is in two files."""

    def __init__(self, arguments: Sequence[str], folder: Path, variables: dict[str, str]) -> None:
        self._stdout, self._stderr = folder / "stdout.txt", folder / "stderr.txt"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=folder,
                stdout=stdout,
                stderr=stderr,
                env=environment(**variables),
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until its output matches; fails when it has ended, or takes too long."""
        deadline = time.monotonic() + BOUND_S
        while True:
            ended = self.process.poll() is not None
            found = re.search(pattern, f"{self.stdout}\n{self.stderr}")
            if found:
                return found
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} in:\n{self.stdout}\n{self.stderr}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(BOUND_S)


@contextmanager
def in_background(*arguments: str, folder: Path, **variables: str) -> Iterator[Background]:
    """Run the command beside the test, and end it with the block."""
    folder.mkdir(exist_ok=True)
    background = Background(arguments, folder, variables)
    try:
        yield background
    finally:
        if background.process.poll() is None:
            background.signal(signal.SIGTERM)
            try:
                background.wait()
            except subprocess.TimeoutExpired:
                background.process.kill()
                background.wait()


@dataclass(frozen=True)
class Screen:
    """What a command has written on a terminal.

    Attributes:
        raw: With its escape sequences.
        lines: Without them.
    """

    code: int
    raw: str

    @property
    def lines(self) -> list[str]:
        written = (line.rstrip() for line in ANSI.sub("", self.raw).split("\n"))
        return [line.rpartition("\r")[2] for line in written]  # a spinner writes over itself


def on_terminal(*arguments: str, columns: int = 80, rows: int = 24, **variables: str) -> Screen:
    """Run the command to its end on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color", LC_ALL="C.UTF-8", **variables),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        written = _read_all(ours, process)
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
        code = process.wait(BOUND_S)
    return Screen(code, written.decode())


def _read_all(terminal: int, process: subprocess.Popen[bytes]) -> bytes:
    written = b""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            if process.poll() is not None:
                return written
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            return written
        if not chunk:
            return written
        written += chunk
    raise AssertionError(f"not at its end within {BOUND_S} s:\n{written.decode()}")
