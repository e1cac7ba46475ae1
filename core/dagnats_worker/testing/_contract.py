"""What every plugin must keep, as tests that its own test class inherits."""

from __future__ import annotations

from dagnats_worker.testing._contract_live import Breaks, Runs
from dagnats_worker.testing._contract_static import Declares, Imports


class PluginContract(Declares, Imports, Runs, Breaks):
    """What every plugin must keep; inherit it, name the plugin, and let pytest run it.

    pytest alone is needed: the tests are plain functions, and start what event loop they need.

    Example:
        ```python
        class TestContract(PluginContract):
            plugin_type = QuietHoursPlugin
            settings = QuietHours(start=0, end=0)  # so that a task is let through
        ```

    Attributes:
        plugin_type: The plugin.
        settings: What it is made with; its defaults when not given.
        task_input: Of the tasks that are run.
        task_headers: Of the messages of these tasks.
        task_options: Of their task type, as keywords of ``@worker.task``.
        needs_jetstream: It uses ``worker.jetstream``, so the tests start a real nats-server.
        may_import: Packages that speak to networks, and that it imports on purpose.
        import_times_max: Importing it may take so many times as long as importing the core.
        blocks_at_most: For so long at a time a hook may keep the event loop.
    """
