"""What every plugin must keep.

Method: the inherited tests, without an SDK and with one. Real: the plugin, the worker, the
OpenTelemetry SDK. Fake: the server, which is in memory.
"""

from __future__ import annotations

from typing import ClassVar

from telemetry_support import TRACEPARENT

from dagnats_worker.testing import PluginContract
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings


class TestContract(PluginContract):
    plugin_type = TelemetryPlugin


class TestContractInsideOfATrace(PluginContract):
    plugin_type = TelemetryPlugin
    settings = TelemetrySettings(client_spans=False, logs="off")
    task_headers: ClassVar = {"traceparent": TRACEPARENT}
