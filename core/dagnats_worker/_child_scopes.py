"""``child_scope`` in the child process of a handler: the plugin is made again there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from dagnats_worker._hook_calls import Implementations
from dagnats_worker.hookspecs import Plugin

_made: dict[type[Plugin[Any]], Plugin[Any]] = {}
"""The plugins of this child process."""


@dataclass(frozen=True, slots=True)
class PluginScope:
    """A plugin's ``child_scope``, as it travels to the child: its class and its settings."""

    plugin_type: type[Plugin[Any]]
    settings: Any
    takes_carrier: bool

    def __call__(self, carrier: dict[str, str]) -> AbstractContextManager[None]:
        plugin = _made.get(self.plugin_type)
        if plugin is None:
            plugin = _made[self.plugin_type] = self.plugin_type(self.settings)
        hook = plugin.child_scope  # type: ignore[attr-defined]  # only plugins that have it come here
        scope: AbstractContextManager[None] = hook(carrier) if self.takes_carrier else hook()
        return scope


def child_scopes(implementations: Implementations) -> Sequence[PluginScope]:
    """What the children of process handlers enter around each handler."""
    return [
        PluginScope(
            type(implementation.member.plugin),
            implementation.member.plugin.settings,
            implementation.takes("carrier"),
        )
        for implementation in implementations
    ]
