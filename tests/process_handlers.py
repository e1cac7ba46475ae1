"""Handlers and scopes for child processes, which import them by name: so they have a module."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pydantic

from dagnats_worker._handlers import typed
from dagnats_worker.errors import NonRetryableError, RetryAfterError


class Size(msgspec.Struct):
    width: int


class Page(pydantic.BaseModel):
    number: int


class BreaksPickleError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


class FoolsPickleError(Exception):
    def __init__(self, code: Any) -> None:
        super().__init__(f"code {code}")


class ThrottledError(RetryAfterError):
    def __init__(self, seconds: int) -> None:
        super().__init__(f"throttled for {seconds} s", timedelta(seconds=seconds))


def process_id(_: Any) -> int:
    return os.getpid()


def process_id_later(wait_s: float) -> int:
    time.sleep(wait_s)
    return os.getpid()


def file_appears(path: str) -> bool:
    deadline = time.monotonic() + 10
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return Path(path).exists()


def width(size: Size) -> Size:
    return Size(size.width * 2)


def number(page: Page) -> Page:
    return Page(number=page.number + 1)


@typed
def marked(size: Size) -> int:
    return size.width


def lock(_: Any) -> Any:
    return threading.Lock()


def leave(code: int) -> None:
    os._exit(code)


def die_by_signal(number: int) -> None:
    os.kill(os.getpid(), number)


def announce_and_hang(path: str) -> None:
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    marker = Path(f"{path}.part")
    marker.write_text(f"{os.getpid()} {helper.pid}")
    marker.rename(path)
    time.sleep(600)


def interrupt_itself(_: Any) -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def own_child(_: Any) -> str:
    return subprocess.run(["/bin/echo", "hello"], check=True, capture_output=True, text=True).stdout


def chain(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def raise_one(which: str) -> None:
    if which == "exit":
        sys.exit(4)
    raise {
        "value": ValueError("bad value"),
        "permanent": chain(NonRetryableError("never again"), KeyError("cause")),
        "wrapped permanent": chain(RuntimeError("outside"), NonRetryableError("inside")),
        "retry after": chain(RetryAfterError("busy", timedelta(seconds=7)), OSError("quota")),
        "throttled": ThrottledError(9),
        "pickle breaks": BreaksPickleError(5, "broken"),
        "pickle lies": chain(FoolsPickleError(5), NonRetryableError("below")),
    }[which]


def context(_: Any) -> str:
    return os.environ["SCOPES"]


def append(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


@contextlib.contextmanager
def outer_scope(carrier: dict[str, str]) -> Iterator[None]:
    os.environ["SCOPES"] = f"outer:{carrier['trace']}"
    yield
    append(carrier["path"], "outer left")


@contextlib.contextmanager
def inner_scope(carrier: dict[str, str]) -> Iterator[None]:
    os.environ["SCOPES"] += " inner"
    # Swallows what the handler raised, and fails at its end.
    with contextlib.suppress(ValueError):
        yield
    append(carrier["path"], "inner left")
    raise RuntimeError("at the end of a scope")


@contextlib.contextmanager
def broken_scope(_: dict[str, str]) -> Iterator[None]:
    raise RuntimeError("at the start of a scope")
    yield
