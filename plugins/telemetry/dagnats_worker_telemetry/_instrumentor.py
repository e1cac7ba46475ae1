"""``opentelemetry-instrument dagnats-worker run app:worker``: the plugin without any code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar
from weakref import WeakSet

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]  # untyped
    BaseInstrumentor,
)
from opentelemetry.instrumentation.utils import unwrap
from wrapt import wrap_function_wrapper

import dagnats_worker
from dagnats_worker import Plugin
from dagnats_worker_telemetry._plugin import TelemetryPlugin
from dagnats_worker_telemetry._providers import Instrumented, Providers

INSTRUMENTED = ("Worker", "Client")


class DagnatsWorkerInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # it is untyped
    """Gives workers and clients the plugin that have their plugins from code, and not this one.

    Those that take what is installed have it already. ``instrument`` takes ``tracer_provider`` and
    ``meter_provider``; without them the global ones are used. Workers and clients that were made
    before are left alone.
    """

    _added: ClassVar[WeakSet[TelemetryPlugin]] = WeakSet()

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for it to be used."""
        return ("dagnats-worker ~= 0.1.0",)

    def _instrument(self, **kwargs: Any) -> None:
        Instrumented.providers = Providers(
            kwargs.get("tracer_provider"), kwargs.get("meter_provider")
        )
        for name in INSTRUMENTED:
            wrap_function_wrapper("dagnats_worker", f"{name}.__init__", self._with_plugin)

    def _uninstrument(self, **kwargs: Any) -> None:
        del kwargs
        for name in INSTRUMENTED:
            unwrap(getattr(dagnats_worker, name), "__init__")
        for plugin in self._added:
            plugin.enabled = False
        self._added.clear()
        Instrumented.providers = Providers()

    def _with_plugin(
        self,
        wrapped: Callable[..., None],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        del instance
        plugins = kwargs.get("plugins")
        if isinstance(plugins, Sequence) and not any(map(_is_telemetry, plugins)):
            plugin = TelemetryPlugin()
            self._added.add(plugin)
            kwargs = {**kwargs, "plugins": [*plugins, plugin]}
        wrapped(*args, **kwargs)


def _is_telemetry(plugin: Plugin[Any]) -> bool:
    return isinstance(plugin, TelemetryPlugin)
