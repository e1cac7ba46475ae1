"""OpenTelemetry for dagnats-worker: spans, metrics, and the task of a log record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagnats_worker_telemetry._logs import (
    JsonFormatter,
    TaskFilter,
    install_log_filter,
    uninstall_log_filter,
)
from dagnats_worker_telemetry._plugin import TelemetryPlugin
from dagnats_worker_telemetry._settings import TelemetrySettings

if TYPE_CHECKING:
    from dagnats_worker_telemetry._instrumentor import DagnatsWorkerInstrumentor

__all__ = [
    "DagnatsWorkerInstrumentor",
    "JsonFormatter",
    "TaskFilter",
    "TelemetryPlugin",
    "TelemetrySettings",
    "install_log_filter",
    "uninstall_log_filter",
]


def __getattr__(name: str) -> Any:
    """Import the instrumentor when it is asked for; it needs opentelemetry-instrumentation."""
    if name != "DagnatsWorkerInstrumentor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dagnats_worker_telemetry import _instrumentor  # noqa: PLC0415 - an optional dependency

    return _instrumentor.DagnatsWorkerInstrumentor
