"""What is answered on the health port beside its own pages: the routes of plugins."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from dagnats_worker.errors import PluginError, describe

RESERVED = ("/livez", "/readyz")

Handler = Callable[[], Coroutine[Any, Any, "Response"]]
Merge = Callable[[list[bytes]], bytes]

_path = re.compile(r"(/[-._~A-Za-z0-9]+)+")


@dataclass(frozen=True, slots=True)
class Response:
    """What a route of the health port answers.

    Attributes:
        status: Of HTTP; 200 for a success.
        content_type: Such as ``application/json``.
    """

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Route:
    """One path of a worker.

    Attributes:
        merge: ``module:function`` of what makes one body of those of several processes; empty where
            nothing was given.
        owner: The plugin that has added it.
    """

    path: str
    handler: Handler
    merge: str
    owner: str


class Routes:
    """The routes of one worker by their path; read by other threads too."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def add(self, path: str, handler: Handler, merge: Merge | None, owner: str) -> None:
        """Add a route.

        Raises:
            ValueError, TypeError: A path, a handler or a merge function that cannot be used.
            PluginError: The path is taken.
        """
        if not isinstance(path, str) or not _path.fullmatch(path):
            raise ValueError(f"a route is a path such as '/metrics', got {path!r}")
        if path in RESERVED:
            raise PluginError(
                f"the route {path} is the worker's own; plugin {owner!r} needs another"
            )
        if (taken := self._routes.get(path)) is not None:
            raise PluginError(
                f"plugins {taken.owner!r} and {owner!r} both add the route {path}; "
                "leave one of them out"
            )
        if not _is_async(handler):
            raise TypeError(f"the handler of {path} is an async function, got {handler!r}")
        name = "" if merge is None else importable_name(merge)
        self._routes[path] = Route(path, handler, name, owner)

    def get(self, path: str) -> Route | None:
        """The route of a path."""
        return self._routes.get(path)

    @property
    def paths(self) -> list[str]:
        """Every path that there is."""
        return sorted(self._routes)

    def forget(self, owner: str) -> None:
        """Remove what one plugin has added."""
        for route in [one for one in self._routes.values() if one.owner == owner]:
            del self._routes[route.path]


def _is_async(handler: Any) -> bool:
    call = getattr(handler, "__call__", None)  # noqa: B004 - a callable object's method may be async
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def importable_name(function: Merge) -> str:
    """``module:function``, by which another process finds it.

    Raises:
        ValueError: It is not found by its name.
    """
    module = getattr(function, "__module__", None)
    name = f"{module}:{getattr(function, '__qualname__', '?')}"
    try:
        found = imported(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"merge is a function of a module, so that another process can import it; got "
            f"{function!r}: {describe(error)}"
        ) from error
    if found is not function or module == "__main__":
        raise ValueError(
            f"merge is a function that another process can import as {name}; {function!r} is not"
        )
    return name


def imported(name: str) -> Merge:
    """What ``module:function`` names.

    Raises:
        ImportError, AttributeError: There is none.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    merge: Merge = found
    return merge
