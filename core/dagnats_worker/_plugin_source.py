"""A source that a plugin brought, held so that its errors stay its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any

from dagnats_worker._slots import Slots
from dagnats_worker._transport import Delivery, Source
from dagnats_worker.errors import PluginError, describe

logger = logging.getLogger("dagnats_worker.plugins")

VALUES = {"ack_wait": timedelta, "confirm_leases": bool, "fenced": bool}
METHODS = ("deliveries", "settled", "stop", "close")


def a_source(answer: Any) -> Source:
    """Refuse what is no source, while it can be said which plugin it came from.

    Raises:
        TypeError: Names what it lacks.
    """
    for name, kind in VALUES.items():
        if not isinstance(getattr(answer, name, None), kind):
            raise TypeError(f"{answer!r} is not a Source: its `{name}` is not a {kind.__name__}")
    for name in METHODS:
        if not callable(getattr(answer, name, None)):
            raise TypeError(f"{answer!r} is not a Source: it has no method `{name}`")
    source: Source = answer
    return source


class PluginSource:
    """Passes everything on; an error or a hanging end of the source keeps nothing else from ending.

    Args:
        limit: For ``stop`` and ``close``.
    """

    def __init__(self, source: Source, limit: timedelta) -> None:
        self._source = source
        self._limit_s = limit.total_seconds()
        self._name = f"{type(source).__module__}.{type(source).__qualname__}"

    @property
    def ack_wait(self) -> timedelta:
        return self._source.ack_wait

    @property
    def confirm_leases(self) -> bool:
        return self._source.confirm_leases

    @property
    def fenced(self) -> bool:
        return self._source.fenced

    @property
    def trouble(self) -> str:
        return str(getattr(self._source, "trouble", ""))

    async def deliveries(self, slots: Slots) -> AsyncIterator[Delivery]:
        try:
            async for delivery in self._source.deliveries(slots):
                if not isinstance(delivery, Delivery):
                    raise TypeError(f"{delivery!r} is not a Delivery")
                yield delivery
        except Exception as error:
            raise PluginError(f"source {self._name}: {describe(error)}") from error

    def settled(self, delivery: Delivery) -> None:
        try:
            self._source.settled(delivery)
        except Exception:  # its slot must come free all the same
            logger.exception("source %s, settled", self._name)

    async def stop(self) -> None:
        await self._bounded("stop", self._source.stop())

    async def close(self) -> None:
        await self._bounded("close", self._source.close())

    async def _bounded(self, what: str, ending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                await ending
        except TimeoutError:
            logger.exception("source %s, %s took longer than hook_timeout", self._name, what)
        except Exception:  # the others must end all the same
            logger.exception("source %s, %s", self._name, what)
