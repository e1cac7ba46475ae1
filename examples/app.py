"""A worker of your own: ``dagnats-worker run app:worker --embedded`` runs it."""

from __future__ import annotations

from dagnats_worker import Worker

worker = Worker()


@worker.task("greet")
async def greet(name: str) -> str:
    return f"Hello, {name}!"
