"""Distributions that bring plugins, written into a folder that a test puts on ``sys.path``.

They are what pip leaves behind: modules, and a ``.dist-info`` folder with metadata.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

GROUP = "dagnats_worker.plugins.v1"
BOUND_S = 30

PLUGIN = """
from dagnats_worker import Plugin

class {kind}(Plugin[None]):
    name = {name!r}
"""


def module_name(distribution: str) -> str:
    return distribution.replace("-", "_")


def write_distribution(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    plugins: Mapping[str, str] | Sequence[str] = (),
    code: str | None = None,
    requires: Sequence[str] = (),
    group: str = GROUP,
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Write a distribution; its one module is called as it is, and returned.

    Args:
        folder: Put it on ``sys.path``.
        name: Of the distribution.
        version: Of the distribution.
        plugins: Names of plugins, or these with what their entry points refer to.
        code: Of the module; without it, a class for each plugin.
        requires: As in ``Requires-Dist``.
        group: Of the entry points.
        more: Other groups, with their entry points.
    """
    module = module_name(name)
    classes = {one: f"Plugin{number}" for number, one in enumerate(plugins)}
    entries = (
        dict(plugins)
        if isinstance(plugins, Mapping)
        else {one: f"{module}:{classes[one]}" for one in plugins}
    )
    if code is None:
        code = "".join(PLUGIN.format(kind=kind, name=one) for one, kind in classes.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {one}" for one in requires]
    (info / "METADATA").write_text("\n".join(metadata) + "\n")
    lines = []
    for title, found in {group: entries, **(more or {})}.items():
        lines += [f"[{title}]", *(f"{key} = {value}" for key, value in found.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return module


def run_python(
    code: str, *folders: Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with these folders in front of ``sys.path``."""
    inherited = {key: text for key, text in os.environ.items() if not key.startswith("DAGNATS_")}
    path = os.pathsep.join([*map(str, folders), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
