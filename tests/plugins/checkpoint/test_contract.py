"""What every plugin must keep.

Method: the inherited tests. Real: the plugin and the worker. Fake: the server, which is in memory.
"""

from __future__ import annotations

from dagnats_worker.testing import PluginContract
from dagnats_worker_checkpoint import CheckpointPlugin


class TestContract(PluginContract):
    plugin_type = CheckpointPlugin
