"""``dagnats-worker plugins``: commands for those who use plugins, and for those who write them."""

from __future__ import annotations

import click

from dagnats_worker.cli._group import LazyCommand, LazyGroup

SECTIONS = {
    "Use": {
        "list": LazyCommand(
            "dagnats_worker.cli._plugins_list:list_plugins", "What is installed, and is it used?"
        ),
        "show": LazyCommand(
            "dagnats_worker.cli._plugins_list:show", "One plugin: hooks, settings, capabilities."
        ),
        "doctor": LazyCommand(
            "dagnats_worker.cli._plugins_doctor:doctor", "What is wrong, and what to do about it."
        ),
    },
    "Write": {
        "new": LazyCommand("dagnats_worker.cli._plugins_new:new", "Begin a plugin of your own."),
        "test": LazyCommand(
            "dagnats_worker.cli._plugins_test:test", "Check a plugin against the contract."
        ),
    },
}


@click.group(cls=LazyGroup, commands_by_section=SECTIONS)
def plugins() -> None:
    """Look at plugins, check them, begin a new one."""
