"""Running contracts with pytest, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dagnats_worker._discovery import API_MAJOR
from dagnats_worker.hookspecs import Plugin
from dagnats_worker.testing._contract import PluginContract

CONTRACTS_GROUP = f"dagnats_worker.contracts.v{API_MAJOR}"
"""Where a distribution names its own subclass of ``PluginContract``, by the plugin's name."""


def has_pytest() -> bool:
    """Whether contracts can be run here."""
    return find_spec("pytest") is not None


def contract_of(plugin: Plugin[Any]) -> type[PluginContract]:
    """The contract of a plugin: its own where its distribution names one, else that of all."""
    inherited: type[PluginContract] = PluginContract
    for entry in entry_points(group=CONTRACTS_GROUP, name=plugin.name):
        inherited = entry.load()
    body = {"plugin_type": type(plugin), "settings": plugin.settings}
    return type("TestContract", (inherited,), body)


def run_pytest(folder: Path, arguments: Sequence[str]) -> int:
    """Run the tests of a folder, with nobody else's configuration; returns the exit code."""
    import pytest  # noqa: PLC0415 - the kit is used without pytest too

    config = folder / "pytest.ini"
    config.write_text("[pytest]\n", encoding="utf-8")
    options = ["-c", str(config), "--import-mode=importlib"]
    plugins = ["-p", "no:cacheprovider", "-p", "no:asyncio"]  # which warns of what is not set here
    return int(pytest.main([*options, *plugins, *arguments, str(folder)]))
