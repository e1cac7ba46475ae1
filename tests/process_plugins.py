"""Plugins and handlers for tests of process handlers: a child imports this module by its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from dagnats_worker import Plugin, TaskContext, hookimpl

made: list[Any] = []
"""The settings of each plugin that this process has made, in order."""

inside: dict[str, str] = {}
"""What the scopes that are open now have got."""


@dataclass(frozen=True)
class Marks:
    word: str = "default"


class Marking(Plugin[Marks]):
    """Passes a word to the child, and shows there that it has arrived."""

    name: ClassVar[str] = "marking"
    settings_type = Marks

    def __init__(self, settings: Marks | None = None) -> None:
        super().__init__(settings)
        made.append(self.settings)

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        ctx.carrier["run"] = ctx.run_id

    @hookimpl
    @contextmanager
    def child_scope(self, carrier: dict[str, str]) -> Iterator[None]:
        inside.update(carrier, word=self.settings.word, process=str(os.getpid()))
        try:
            yield
        finally:
            inside.clear()


class Quiet(Plugin[None]):
    """Wants nothing of what it could be given."""

    name: ClassVar[str] = "quiet"

    @hookimpl(specname="child_scope")
    @contextmanager
    def around_the_child(self) -> Iterator[None]:
        inside["quiet"] = "yes"
        yield


class Breaking(Plugin[None]):
    """Cannot be entered."""

    name: ClassVar[str] = "breaking"

    @hookimpl
    @contextmanager
    def child_scope(self) -> Iterator[None]:
        raise RuntimeError("no room in the child")
        yield


class Unpicklable(Plugin[Any]):
    """Has settings that cannot travel."""

    name: ClassVar[str] = "unpicklable"

    def __init__(self) -> None:
        super().__init__()
        self.settings = lambda: None

    @hookimpl
    @contextmanager
    def child_scope(self) -> Iterator[None]:
        yield


def look(text: str) -> dict[str, Any]:
    """A process handler: what it finds around itself."""
    logging.getLogger("dagnats_worker").setLevel(logging.CRITICAL)
    return {**inside, "text": text, "made": [one.word for one in made], "pid": os.getpid()}
