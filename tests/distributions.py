"""Distributions that look installed: their metadata and modules in a folder on the path."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

PLUGIN = """
    from __future__ import annotations

    from dagnats_worker import Plugin

    class One(Plugin[None]):
        name = {name!r}
"""


def distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    plugins: Mapping[str, str] | None = None,
    commands: Mapping[str, str] | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    requires: Iterable[str] = ("dagnats-worker",),
    modules: Mapping[str, str] | None = None,
) -> None:
    """Put a distribution into a folder.

    Args:
        plugins: Entry points in the plugins' group, by name.
        commands: Entry points in the commands' group, by name.
        groups: Entry points in any other group.
        modules: Sources by module name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join([*lines, ""]))
    groups = {
        "dagnats_worker.plugins.v1": plugins or {},
        "dagnats_worker.commands.v1": commands or {},
        **(groups or {}),
    }
    text = [
        f"[{group}]\n" + "".join(f"{one} = {value}\n" for one, value in entries.items())
        for group, entries in groups.items()
        if entries
    ]
    (info / "entry_points.txt").write_text("\n".join(text))
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source))


def plugin_of(name: str) -> str:
    """The source of a plugin that does nothing; its class is ``One``."""
    return PLUGIN.format(name=name)
