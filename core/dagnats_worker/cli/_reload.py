"""``run --reload``: one process, started again whenever a file of the program has changed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import click

from dagnats_worker._http import AddressError
from dagnats_worker._serve import EXIT_BROKEN
from dagnats_worker.cli._children import Child, described_end
from dagnats_worker.cli._merged_health import MergedHealth
from dagnats_worker.cli._supervise import Plan, Stop

logger = logging.getLogger("dagnats_worker.supervisor")

WATCHED = (".toml",)
"""Beside Python's own: the configuration."""


def check_reload() -> None:
    """Refuse, with what to install, where nobody can watch files."""
    if find_spec("watchfiles") is None:
        raise click.UsageError("--reload needs a package: pip install 'dagnats-worker[reload]'")


class Reloader:
    """Runs one process, and another one after each change; what crashes waits for the next."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stop = Stop()
        self._child: Child | None = None
        self._failure: AddressError | None = None
        self._health = MergedHealth(
            lambda: [self._child] if self._child is not None else [], self._stop.asked.is_set
        )

    async def run(self) -> int:
        """Run, and return the exit code of the last process; 1 where a signal has ended it.

        Raises:
            AddressError: The port for health is taken.
        """
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # what it says, we say better
        # A file that changes twice within a second, and keeps its size, would be the old one still.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        with self._stop.on_signals():
            async with self._health:
                await self._health.open(self._plan.health)
                async with aclosing(self._changes()) as changes:
                    code = await self._run(changes)
        return code if code >= 0 else EXIT_BROKEN

    async def _run(self, changes: AsyncIterator[str]) -> int:
        shows = True
        while True:
            child = self._child = await Child.start(0, 1, url=self._plan.url, shows=shows)
            self._stop.children.add(child)
            changed = asyncio.ensure_future(anext(changes, ""))
            code = await self._until_changed(child, changed)
            self._stop.children.discard(child)
            self._child = None
            if self._failure is not None:
                raise self._failure
            if self._stop.asked.is_set():
                return code
            if not changed.done():
                logger.error("the worker %s; waiting for a change", described_end(code))
                _tell(await changed)
            if not changed.result():  # told to stop
                return code
            shows = shows and not child.ready.is_set()

    async def _until_changed(self, child: Child, changed: asyncio.Future[str]) -> int:
        """Wait for its end, which we ask for when a file has changed, or when we are to end."""
        introduced = asyncio.create_task(self._introduced(child))
        ended = asyncio.create_task(self._stop.ended(child))
        either: set[asyncio.Future[object]] = {changed, ended}  # type: ignore[arg-type]  # read only
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and not self._stop.asked.is_set():
            _tell(changed.result())
            await child.end(child.config.drain_timeout)
        code = await ended
        await introduced
        return code

    async def _introduced(self, child: Child) -> None:
        if await child.reaches(child.introduced):
            try:
                await self._health.open(self._plan.health or child.config.health)
            except AddressError as error:
                self._failure = error
                self._stop.asked.set()

    async def _changes(self) -> AsyncGenerator[str, None]:
        """What has changed, again and again, until we are told to stop."""
        from watchfiles import PythonFilter, awatch  # noqa: PLC0415 - an extra

        folder = Path.cwd()
        watched = PythonFilter(extra_extensions=WATCHED)
        async for changes in awatch(folder, watch_filter=watched, stop_event=self._stop.asked):
            names = sorted({_short(path, folder) for _, path in changes})
            yield f"{names[0]} has changed" + (f", and {len(names) - 1} more" if names[1:] else "")


def _tell(changed: str) -> None:
    if changed:
        logger.info("%s; starting again", changed)


def _short(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder)
