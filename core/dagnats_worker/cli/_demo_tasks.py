"""The tasks of the demo: a handler of each kind, and how each task has to end."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from dagnats_worker._context import TaskContext
from dagnats_worker._worker import Worker
from dagnats_worker.errors import NonRetryableError, RetryAfterError

HASH_ROUNDS = 120_000
FETCH_ATTEMPTS = 3
STORY = "once upon a time {} took a task, crashed, and the task was done all the same"


@dataclass(frozen=True, slots=True)
class Person:
    """An input, decoded and checked before the handler sees it."""

    name: str


@dataclass(frozen=True, slots=True)
class Greeting:
    """An output, encoded as JSON."""

    text: str


async def greet(person: Person) -> Greeting:
    """Typed: JSON in, JSON out."""
    await asyncio.sleep(0.1 + len(person.name) * 0.02)
    return Greeting(f"Hello, {person.name}!")


def checksum(text: str) -> str:
    """Blocking, so it runs in a thread and the event loop stays free."""
    return hashlib.pbkdf2_hmac("sha256", text.encode(), b"demo", HASH_ROUNDS).hex()[:16]


def primes(limit: int) -> int:
    """Pure Python that would hold the interpreter, so it runs in a process of its own."""
    sieve = bytearray([1]) * limit
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return sum(sieve) - 2


async def story(ctx: TaskContext, hero: str) -> int:
    """Streams while it runs."""
    words = STORY.format(hero).split()
    for word in words:
        await ctx.put_stream(word.encode())
        await asyncio.sleep(0.08)
    return len(words)


async def fetch(ctx: TaskContext, url: str) -> str:
    """Fails twice and then succeeds: the service says when it wants to be asked again."""
    await asyncio.sleep(0.05)
    if ctx.attempt < FETCH_ATTEMPTS:
        raise RetryAfterError(f"503 from {url}", timedelta(milliseconds=500))
    return f"200 from {url}"


async def charge(card: str) -> None:
    """Fails for good at once: no retry can help."""
    await asyncio.sleep(0.2)
    raise NonRetryableError(f"the card {card} was declined")


async def upload(file: str) -> None:
    """Fails until its attempts are used up."""
    await asyncio.sleep(0.05)
    raise RetryAfterError(f"no room for {file}", timedelta(milliseconds=250))


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks of one type.

    Attributes:
        shows: What they are there to show.
        inputs: One task for each.
        ends: How each of them has to end.
        attempts: After how many attempts.
        why: Why they fail for good, for people.
    """

    name: str
    handler: Any
    shows: str
    inputs: tuple[Any, ...]
    ends: Literal["completed", "failed"] = "completed"
    attempts: int = 1
    streams: bool = False
    why: str = ""


NAMES = ("Ada", "Grace", "Edsger", "Barbara", "Donald", "Radia")

KINDS = (
    Kind("greet", greet, "typed, async", tuple({"name": name} for name in NAMES * 2)),
    Kind("checksum", checksum, "blocking, in a thread", tuple(f"block {n}" for n in range(8))),
    Kind("primes", primes, "CPU-bound, in a process", (200_000, 300_000, 400_000, 500_000)),
    Kind("story", story, "streams while it runs", NAMES[:4], streams=True),
    Kind("fetch", fetch, "fails twice, then works", tuple("abcde"), attempts=FETCH_ATTEMPTS),
    Kind(
        "charge",
        charge,
        "fails for good at once",
        ("4000-0002", "4000-9995"),
        ends="failed",
        why="no retry can help",
    ),
    Kind(
        "upload",
        upload,
        "fails at every attempt",
        ("backup.tar",),
        ends="failed",
        attempts=5,
        why="all its attempts are used up",
    ),
)


def demo_worker(url: str, prefix: str) -> Worker:
    """A worker that serves them all.

    Args:
        prefix: Goes before each task type, so that a server of somebody else is not disturbed.
    """
    worker = Worker(url)
    options: dict[str, dict[str, Any]] = {
        "greet": {"concurrency": 3},
        "primes": {"executor": "process"},
        "story": {"concurrency": 2},
    }
    for kind in KINDS:
        worker.handle(prefix + kind.name, kind.handler, **options.get(kind.name, {}))
    return worker
