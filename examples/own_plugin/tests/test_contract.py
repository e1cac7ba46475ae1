"""What every plugin must keep.

Method: the inherited tests, on a task type that is guarded. Real: the plugin and the worker. Fake:
the server, which is in memory.
"""

from __future__ import annotations

from typing import ClassVar

from dagnats_worker.testing import PluginContract

from dagnats_worker_idempotency import IdempotencyPlugin


class TestContract(PluginContract):
    plugin_type = IdempotencyPlugin
    task_input: ClassVar = {"order": "o-1"}
    task_options: ClassVar = {"idempotency_key": "order"}
