"""``child_scope`` in the child process of a handler: the plugin is made again there."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dagnats_worker._hook_calls import Implementation, Implementations
from dagnats_worker._plugin_checks import taken_arguments
from dagnats_worker.errors import PluginError, describe
from dagnats_worker.hookspecs import Plugin

logger = logging.getLogger("dagnats_worker.plugins")

HOOK = "child_scope"


class PluginScope:
    """A plugin's ``child_scope``, as it travels to the child: its class and its settings.

    Attributes:
        method: Of the class, which may call it otherwise than the hook.
        required: Where it is not, an error is logged and the handler runs all the same.
    """

    def __init__(
        self, plugin_type: type[Plugin[Any]], settings: Any, method: str, *, required: bool
    ) -> None:
        self.plugin_type = plugin_type
        self.settings = settings
        self.method = method
        self.required = required
        self._plugin: Plugin[Any] | None = None

    def __call__(self, carrier: dict[str, str]) -> AbstractContextManager[None]:
        try:
            return _Entered(self._made(carrier))
        except Exception as error:
            name = getattr(self.plugin_type, "name", self.plugin_type.__name__)
            text = f"plugin {name!r}, {HOOK}: {describe(error)}"
            if self.required:
                raise PluginError(text) from error
            logger.exception("%s", text)
            return nullcontext()

    def _made(self, carrier: dict[str, str]) -> AbstractContextManager[None]:
        if self._plugin is None:  # once for each child
            self._plugin = self.plugin_type(self.settings)
        hook = getattr(self._plugin, self.method)
        by_position, by_name = taken_arguments(HOOK, hook)
        scope: AbstractContextManager[None] = hook(
            *(carrier for _ in by_position), **dict.fromkeys(by_name, carrier)
        )
        return scope


class _Entered(AbstractContextManager[None]):
    """A context manager that is entered when it is made, so that its error is met there."""

    def __init__(self, manager: AbstractContextManager[None]) -> None:
        self._manager = manager
        manager.__enter__()

    def __exit__(self, *reason: Any) -> bool | None:
        return self._manager.__exit__(*reason)


def child_scopes(implementations: Implementations) -> Sequence[PluginScope]:
    """What the children of process handlers enter around each handler.

    Raises:
        PluginError: A required plugin or its settings cannot be sent to a process.
    """
    scopes = []
    for implementation in implementations:
        scope = _scope(implementation)
        try:
            pickle.dumps(scope)
        except Exception as error:
            text = f"it cannot be sent to the process of a handler: {describe(error)}"
            if implementation.member.required:
                raise implementation.error(PluginError(text)) from error
            implementation.failed(PluginError(text))
        else:
            scopes.append(scope)
    return scopes


def _scope(implementation: Implementation) -> PluginScope:
    member = implementation.member
    method = implementation.function.__name__
    return PluginScope(
        type(member.plugin), member.plugin.settings, method, required=member.required
    )
