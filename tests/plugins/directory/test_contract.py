"""What every plugin must keep.

Method: the inherited tests. Real: the plugin and the worker. Fake: the server, which is in memory.
"""

from __future__ import annotations

from dagnats_worker.testing import PluginContract
from dagnats_worker_directory import DirectoryPlugin, DirectorySettings


class TestContract(PluginContract):
    plugin_type = DirectoryPlugin
    settings = DirectorySettings(version="1.2.0", metadata={"zone": "eu"})
