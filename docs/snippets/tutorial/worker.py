"""The worker of the tutorial: four task types, one for each kind of handler."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tenacity import stop_after_attempt, wait_fixed

from dagnats_worker import NonRetryableError, Retry, SyncTaskContext, TaskContext, Worker

worker = Worker()


@dataclass
class Person:
    name: str
    language: str = "en"


@worker.task("greet")
async def greet(person: Person) -> dict[str, str]:
    hello = "Hei" if person.language == "nb" else "Hello"
    return {"text": f"{hello}, {person.name}!"}


@worker.task("checksum", concurrency=4)
def checksum(ctx: SyncTaskContext, text: str) -> str:
    ctx.log.info("hashing %d characters", len(text))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@worker.task("story")
async def story(ctx: TaskContext, hero: str) -> int:
    words = f"once upon a time there was {hero}".split()
    for word in words:
        await ctx.put_stream(word.encode())
    return len(words)


@worker.task("weather", retry=Retry(stop=stop_after_attempt(4), wait=wait_fixed(0.2)))
async def weather(ctx: TaskContext, city: str) -> str:
    if city == "Atlantis":
        raise NonRetryableError("Atlantis has sunk")
    if ctx.attempt < 3:
        raise ConnectionError("nobody answers")
    return f"rain in {city}"
