"""What every plugin must keep.

Method: the inherited tests. Real: the plugin and the worker, and the server where a test needs one.
Fake: the server of the others, which is in memory.
"""

from __future__ import annotations

from typing import ClassVar

from dagnats_worker.testing import PluginContract
from dagnats_worker_signals import SignalsPlugin


class TestInMemory(PluginContract):
    plugin_type = SignalsPlugin
    may_import: ClassVar = ("nats",)


class TestOnAServer(PluginContract):
    plugin_type = SignalsPlugin
    may_import: ClassVar = ("nats",)
    needs_jetstream = True
