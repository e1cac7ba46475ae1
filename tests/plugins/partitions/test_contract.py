"""What every plugin must keep.

Method: the inherited tests. Real: the plugin, the worker, and the server. Fake: nothing.
"""

from __future__ import annotations

from typing import ClassVar

from dagnats_worker.testing import PluginContract
from dagnats_worker_partitions import PartitionsPlugin


class TestContract(PluginContract):
    plugin_type = PartitionsPlugin
    task_options: ClassVar = {"partitions": 2, "ordered": True}
    needs_jetstream = True
