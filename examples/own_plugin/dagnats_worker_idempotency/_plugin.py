"""The plugin: claims a key before the handler runs, and stores what the handler returns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from dagnats_worker import (
    BaseContext,
    Capability,
    Completed,
    Continued,
    DelayTask,
    EndTask,
    Failed,
    Outcome,
    Paused,
    Plugin,
    Released,
    TaskContext,
    hookimpl,
)
from dagnats_worker.errors import KeyValueError
from dagnats_worker.hookspecs import WorkerFacade

from dagnats_worker_idempotency._store import Claim, LostClaimError, Store

logger = logging.getLogger("dagnats_worker_idempotency")

HEADER = "Idempotency-Key"
RENEWALS_PER_CLAIM = 3


@dataclass(frozen=True, slots=True)
class IdempotencySettings:
    """How the guard behaves.

    Attributes:
        bucket: Where keys are kept; made at the start where it does not exist.
        ttl: How long a result answers for its key.
        claim_ttl: How long a key stays taken by a worker that has died.
        check_every: How often a task looks again whose key is taken.
    """

    bucket: str = "idempotency"
    ttl: timedelta = timedelta(days=1)
    claim_ttl: timedelta = timedelta(minutes=1)
    check_every: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, timedelta) and value <= timedelta(0):
                raise ValueError(f"{one.name} is longer than zero, got {value!r}")


@dataclass(frozen=True, slots=True)
class IdempotencyOptions:
    """What ``@worker.task`` takes on top.

    Attributes:
        idempotency_key: Where the input has the key, such as ``"order.id"``; the header
            ``Idempotency-Key`` of a task is stronger. Empty: tasks of this type are not guarded.
    """

    idempotency_key: str = ""


class Idempotency:
    """What a handler is told of its key.

    Attributes:
        key: To be passed on to services that understand one; None where the task is not guarded.
        resumed: An earlier delivery of this task has begun, so that half of the work may be done.
    """

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.resumed = False
        self.claim: Claim | None = None


IDEMPOTENCY: Capability[Idempotency] = Capability(
    "idempotency", install="dagnats-worker-idempotency"
)


class IdempotencyPlugin(Plugin[IdempotencySettings]):
    """Runs one task for each key, and answers the others with its result."""

    name = "idempotency"
    settings_type = IdempotencySettings
    task_options = IdempotencyOptions
    provides = (IDEMPOTENCY,)
    after = ("*",)  # whoever holds tasks back does so before a key is claimed

    store: Store
    held: set[int]

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        settings = self.settings
        kv = await worker.create_kv(settings.bucket, ttl=settings.ttl)
        self.store = Store(kv, ttl=settings.ttl, claim_ttl=settings.claim_ttl)
        self._claims: dict[str, Claim] = {}
        worker.provide(IDEMPOTENCY, self._for_task)
        worker.spawn(self._keep_claims, "idempotency claims")
        yield

    def _for_task(self, ctx: BaseContext) -> Idempotency:
        return Idempotency(key_of(ctx))

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        """Claim the key of a task; where another task has had it, end with its result.

        A plugin that is not required is skipped when it fails. A guard must not be, so what fails
        here holds the task back.
        """
        try:
            guard = ctx.use(IDEMPOTENCY)
        except MissingKeyError as error:
            raise EndTask(Failed(str(error), "non_retriable")) from error
        if guard.key is None:
            return
        try:
            found = await self.store.claim(ctx.task_type, guard.key, ctx.task_id)
        except KeyValueError as error:
            ctx.log.warning("the key %r cannot be claimed: %s", guard.key, error)
            raise DelayTask(self.settings.check_every) from error
        if isinstance(found, Claim):
            guard.claim, guard.resumed = found, found.resumed
            self._claims[found.record.token] = found
            return
        if found.done:
            ctx.log.info("the key %r has the result of %s", guard.key, found.task_id)
            raise EndTask(Completed(found.output))
        raise DelayTask(self.settings.check_every)

    @hookimpl
    @asynccontextmanager
    async def outcome_scope(self, ctx: TaskContext, outcome: Outcome) -> AsyncIterator[None]:
        """Store the result before it is published: should it not be, the task comes again.

        Then its own result is found, and published.
        """
        claim = claim_of(ctx)
        if claim is not None and isinstance(outcome, Completed):
            await self.store.finish(claim, outcome.output)
        yield

    @hookimpl
    @asynccontextmanager
    async def task_scope(self, ctx: TaskContext) -> AsyncIterator[None]:
        """Let go of the key on every path on which the task has not kept it for its result."""
        try:
            yield
        finally:
            claim = claim_of(ctx)
            if claim is not None:
                del self._claims[claim.record.token]
                await self._let_go(ctx, claim)

    async def _let_go(self, ctx: TaskContext, claim: Claim) -> None:
        try:
            match ctx.outcome:
                case Completed():
                    pass  # its result is stored, or the claim ends by itself
                case Continued():
                    await self.store.keep(claim)
                case Paused(_, delay) | Released(_, delay):
                    await self.store.keep(claim, delay)
                case _:
                    await self.store.release(claim)
        except KeyValueError as error:
            ctx.log.warning("the key %r ends by itself: %s", claim.record.key, error)

    async def _keep_claims(self) -> None:
        """Renew what is held, so that a handler may take longer than a claim lasts."""
        every_s = self.settings.claim_ttl.total_seconds() / RENEWALS_PER_CLAIM
        while True:
            await asyncio.sleep(every_s)
            for claim in list(self._claims.values()):
                try:
                    await self.store.keep(claim)
                except LostClaimError as error:
                    logger.error("%s; it was held by %s", error, claim.record.task_id)
                except KeyValueError as error:
                    logger.warning("the key %r is not renewed: %s", claim.record.key, error)


class MissingKeyError(ValueError):
    """A task of a guarded type has no key."""


def claim_of(ctx: TaskContext) -> Claim | None:
    """The claim of a task that has one."""
    try:
        return ctx.use(IDEMPOTENCY).claim
    except MissingKeyError:
        return None


def key_of(ctx: BaseContext) -> str | None:
    """The key of a task; None for a task type that is not guarded.

    Raises:
        MissingKeyError: It has none; says where it was looked for.
    """
    options: IdempotencyOptions = ctx.options(IdempotencyPlugin)
    path = options.idempotency_key
    if not path:
        return None
    if header := ctx.headers.get(HEADER):
        return header
    value: Any = ctx.json()
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise MissingKeyError(
            f"no idempotency key: the input has no text or number at {path!r}, and the task no "
            f"header {HEADER}"
        )
    return str(value)
