"""The order in which the hooks of plugins are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dagnats_worker._hook_calls import Member
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import Plugin

EVERYBODY = "*"

Precedes = Callable[[Plugin[Any], Plugin[Any]], bool]


def in_order(members: Sequence[Member]) -> list[Member]:
    """Sort by ``before`` and ``after``; where these say nothing, the given order stays.

    Raises:
        PluginError: Two plugins have one name, or their wishes form a ring.
    """
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise PluginError(f"two plugins are called {name!r}; leave one of them out")
    waiting = list(members)
    ordered: list[Member] = []
    while waiting:
        ready = _ready(waiting, _goes_first) or _ready(waiting, _is_named_first)
        if ready is None:
            ring = ", ".join(repr(member.name) for member in waiting)
            raise PluginError(f"the before and after of the plugins {ring} contradict each other")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _ready(waiting: Sequence[Member], precedes: Precedes) -> Member | None:
    """The first one that no other one precedes."""
    for member in waiting:
        others = (other for other in waiting if other is not member)
        if not any(precedes(other.plugin, member.plugin) for other in others):
            return member
    return None


def _goes_first(one: Plugin[Any], other: Plugin[Any]) -> bool:
    """A wish that names the other is stronger than ``*``, and two ``*`` cancel each other."""
    if _is_named_first(one, other) or _is_named_first(other, one):
        return _is_named_first(one, other)
    return _is_starred_first(one, other) and not _is_starred_first(other, one)


def _is_named_first(one: Plugin[Any], other: Plugin[Any]) -> bool:
    return other.name in one.before or one.name in other.after


def _is_starred_first(one: Plugin[Any], other: Plugin[Any]) -> bool:
    return EVERYBODY in one.before or EVERYBODY in other.after
