"""``dagnats-worker plugins test``: an installed plugin, against the contract of all plugins."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dagnats_worker._discovery import not_installed
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._plugins_look import look
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import Plugin

MODULE = """
from __future__ import annotations

from dagnats_worker.cli._plugins_test import installed_plugin
from dagnats_worker.testing._contract_pytest import contract_of

TestContract = contract_of(installed_plugin({name!r}))
"""


@click.command(cls=Command)
@click.argument("name", required=False)
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- PYTEST...]")
def test(name: str | None, pytest_arguments: tuple[str, ...]) -> int:
    """Check a plugin that is installed against the contract that all plugins keep.

    Without NAME, every one that is in use. It has the settings that it has here. What follows two
    dashes is for pytest, and so is the exit code.

    \b
    Example:
      dagnats-worker plugins test checkpoint -- -k cancelled
    """
    # The testing kit brings nats-py, which `--help` does not need.
    from dagnats_worker.testing._contract_pytest import has_pytest, run_pytest  # noqa: PLC0415 - see above

    if not has_pytest():
        raise PluginError("pytest runs the contract, and it is not installed: pip install pytest")
    names = [installed_plugin(name).name] if name is not None else _names()
    with tempfile.TemporaryDirectory() as folder:
        for one in names:
            module = Path(folder, f"test_{one.replace('-', '_')}.py")
            module.write_text(MODULE.format(name=one), encoding="utf-8")
        return run_pytest(Path(folder), pytest_arguments)


def _names() -> Sequence[str]:
    names = [one.found.name for one in look().active]
    if not names:
        raise PluginError("no plugin is in use; see: dagnats-worker plugins list")
    return names


def installed_plugin(name: str) -> Plugin[Any]:
    """A plugin that is in use, by its name or that of its distribution.

    Raises:
        PluginError: It is not installed, or not in use; says why.
    """
    found = look()
    candidates = found.find(name)
    if not candidates:
        raise PluginError(not_installed(name, [one.found for one in found.candidates]))
    for candidate in candidates:
        if candidate.plugin is not None and candidate.state == "active":
            return candidate.plugin
    candidate = candidates[0]
    reason = " ".join(candidate.reason.split())
    raise PluginError(f"plugin {candidate.found.name!r} is {candidate.state}: {reason}")
